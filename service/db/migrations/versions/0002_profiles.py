"""Searches keep the profile of their reference's layers."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    """Go on to this revision: of earlier searches no profile was told."""
    op.add_column("searches", sa.Column("profile", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_column("searches", "profile")
