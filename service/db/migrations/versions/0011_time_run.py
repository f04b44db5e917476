"""Trials tell how long they ran from how long they waited between attempts."""

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"

MOMENT = sa.DateTime(timezone=True)
RAN = {
    "postgresql": "extract(epoch from ended_at - started_at)",
    "sqlite": "(julianday(ended_at) - julianday(started_at)) * 86400",
}


def upgrade() -> None:
    """Go on to this revision: trials of before ran from their first start to their end."""
    op.add_column("trials", sa.Column("begun_at", MOMENT, nullable=True))
    op.add_column(
        "trials", sa.Column("ran_seconds", sa.Double(), nullable=False, server_default="0")
    )
    ran = RAN[op.get_bind().dialect.name]
    op.execute(f"UPDATE trials SET ran_seconds = {ran} WHERE ended_at >= started_at")  # noqa: S608  # nosec B608
    op.execute("UPDATE trials SET begun_at = started_at WHERE state = 'RUNNING'")


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_column("trials", "ran_seconds")
    op.drop_column("trials", "begun_at")
