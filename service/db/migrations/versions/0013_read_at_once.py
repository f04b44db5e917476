"""How far searches have come is told from an index, what they have found from their rows."""

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"

INDEXES = (
    ("searches", "priority", "id"),
    ("trials", "search_id", "state", "ran_seconds", "kind"),
    *(
        ("trials", "search_id", sorted_by, "number")
        for sorted_by in ("loss", "cost", "latency_ratio", "started_at")
    ),
)
NEWEST_LOSS = """
UPDATE trials SET loss = (
    SELECT value FROM metric_latest WHERE trial_id = trials.id AND name = 'validation_loss'
) WHERE loss IS NULL
"""


def upgrade() -> None:
    """Go on to this revision: the bests of before are looked up among their trials."""
    op.add_column("searches", sa.Column("bests", sa.JSON(none_as_null=True), nullable=True))
    op.execute(NEWEST_LOSS)
    for table, *columns in INDEXES:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns)


def downgrade() -> None:
    """Go back to the one before; what has not ended loses its loss, which its curve has."""
    for table, *columns in INDEXES:
        op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table_name=table)
    op.execute("UPDATE trials SET loss = NULL WHERE metrics IS NULL")
    op.drop_column("searches", "bests")
