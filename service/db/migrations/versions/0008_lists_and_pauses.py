"""Searches are paused, go before others, and are listed by what they found; so are trials."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"

INDEXES = (("best_loss", "id"), ("name", "id"), ("model",), ("dataset",))
SEARCHES = sa.table("searches", sa.column("id"), sa.column("best_loss", sa.Double))
TRIALS = sa.table(
    "trials",
    *(sa.column(name) for name in ("id", "search_id", "budget_index", "state", "cost")),
    sa.column("loss", sa.Double),
    sa.column("metrics", sa.JSON(none_as_null=True)),
)
BUDGETS = sa.table("searches", sa.column("id"), sa.column("budget"))


def upgrade() -> None:
    """Go on to this revision, reading once what lists are to be sorted by."""
    op.add_column("searches", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    priority = sa.Column("priority", _integer(), server_default=sa.text("0"), nullable=False)
    op.add_column("searches", priority)
    op.add_column("searches", sa.Column("best_loss", sa.Double(), nullable=True))
    for columns in INDEXES:
        op.create_index(op.f(f"ix_searches_{'_'.join(columns)}"), "searches", list(columns))
    for name in ("loss", "latency_ratio"):
        op.add_column("trials", sa.Column(name, sa.Double(), nullable=True))
    _fill_in()


def downgrade() -> None:
    """Go back to the one before."""
    for name in ("latency_ratio", "loss"):
        op.drop_column("trials", name)
    for columns in INDEXES:
        op.drop_index(op.f(f"ix_searches_{'_'.join(columns)}"), table_name="searches")
    for name in ("best_loss", "priority", "paused_at"):
        op.drop_column("searches", name)


def _fill_in() -> None:
    connection = op.get_bind()
    budgets = {
        row[0]: row[1] for row in connection.execute(sa.select(BUDGETS.c.id, BUDGETS.c.budget))
    }
    found: dict[str, float] = {}
    for row in connection.execute(sa.select(TRIALS)).mappings().all():
        loss = _loss(row["metrics"])
        if loss is None:
            continue
        connection.execute(sa.update(TRIALS).where(TRIALS.c.id == row["id"]).values(loss=loss))
        search_id, cost = row["search_id"], row["cost"]
        if row["state"] == "COMPLETE" and cost is not None and cost <= budgets[search_id]:
            found[search_id] = min(loss, found.get(search_id, loss))
    for search_id, loss in found.items():
        changed = sa.update(SEARCHES).where(SEARCHES.c.id == search_id)
        connection.execute(changed.values(best_loss=loss))


def _loss(metrics: Mapping[str, Any] | None) -> float | None:
    value = (metrics or {}).get("validation_loss")
    return None if value is None else float(value)


def _integer() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")
