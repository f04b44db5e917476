"""What is watched: who asked for what, since when trials wait, how often workers are lost."""

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"

MOMENT = sa.DateTime(timezone=True)
WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Go on to this revision: of the searches of before nobody knows who asked."""
    op.add_column("searches", sa.Column("request_id", sa.String(64), nullable=True))
    op.add_column("searches", sa.Column("trace", sa.String(60), nullable=True))
    op.add_column("trials", sa.Column("ready_at", MOMENT, nullable=True))
    op.create_index(op.f("ix_trials_state_ready_at"), "trials", ["state", "ready_at"])
    op.create_table(
        "counters",
        sa.Column("name", sa.String(60), nullable=False),
        sa.Column("value", WHOLE, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_table("counters")
    op.drop_index(op.f("ix_trials_state_ready_at"), "trials")
    op.drop_column("trials", "ready_at")
    op.drop_column("searches", "trace")
    op.drop_column("searches", "request_id")
