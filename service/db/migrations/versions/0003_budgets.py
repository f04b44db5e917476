"""Several budgets in one search: every trial says which of them holds for it."""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"


INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Go on to this revision: the trials of before had one budget, the first."""
    op.add_column(
        "trials", sa.Column("budget_index", INTEGER, nullable=False, server_default=sa.text("0"))
    )


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_column("trials", "budget_index")
