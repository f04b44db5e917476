"""Searches that begin with the candidates of an earlier one keep a copy of what they were told."""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"


JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Go on to this revision: the searches of before began with nothing."""
    op.add_column("searches", sa.Column("earlier", JSON, nullable=True))
    op.add_column("searches", sa.Column("warm_start", JSON, nullable=True))


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_column("searches", "warm_start")
    op.drop_column("searches", "earlier")
