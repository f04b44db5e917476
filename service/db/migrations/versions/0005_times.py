"""Searches whose budget is in time: a trial keeps what each layer of its network takes."""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"


JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Go on to this revision: no search of before had such a budget."""
    op.add_column("trials", sa.Column("times", JSON, nullable=True))


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_column("trials", "times")
