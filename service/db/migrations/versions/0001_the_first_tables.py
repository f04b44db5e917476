"""The first tables: searches, trials, curves, events, uploads, workers and answers."""

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None


INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Go on to this revision."""
    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.Column("tensor", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("rows", INTEGER, nullable=False),
        sa.Column("columns", INTEGER, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("status", INTEGER, nullable=True),
        sa.Column("answer", JSON, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency")),
    )
    op.create_table(
        "searches",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=True),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("version", INTEGER, nullable=False),
        sa.Column("quantity", sa.Text(), nullable=False),
        sa.Column("budget", INTEGER, nullable=False),
        sa.Column("dense_cost", INTEGER, nullable=False),
        sa.Column("smallest_cost", INTEGER, nullable=False),
        sa.Column("eligible", JSON, nullable=False),
        sa.Column("network", JSON, nullable=False),
        sa.Column("report", JSON, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("deadline_at", MOMENT, nullable=True),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_searches")),
    )
    op.create_index(
        op.f("ix_searches_created_at_id"), "searches", ["created_at", "id"], unique=False
    )
    op.create_index(op.f("ix_searches_state"), "searches", ["state"], unique=False)

    op.create_table(
        "events",
        sa.Column("id", INTEGER, sa.Identity(always=False), nullable=False),
        sa.Column("search_id", sa.String(length=40), nullable=False),
        sa.Column("trial_number", INTEGER, nullable=True),
        sa.Column("attempt", INTEGER, nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["search_id"], ["searches.id"], name=op.f("fk_events_search_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_search_id_id"), "events", ["search_id", "id"], unique=False)

    op.create_table(
        "search_tags",
        sa.Column("search_id", sa.String(length=40), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["search_id"],
            ["searches.id"],
            name=op.f("fk_search_tags_search_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("search_id", "tag", name=op.f("pk_search_tags")),
    )
    op.create_index(op.f("ix_search_tags_tag"), "search_tags", ["tag"], unique=False)

    op.create_table(
        "trials",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("search_id", sa.String(length=40), nullable=False),
        sa.Column("number", INTEGER, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=True),
        sa.Column("repeat", INTEGER, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("attempt", INTEGER, nullable=False),
        sa.Column("losses", INTEGER, nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_until", MOMENT, nullable=True),
        sa.Column("hinted_at", MOMENT, nullable=True),
        sa.Column("settings", JSON, nullable=True),
        sa.Column("network", JSON, nullable=True),
        sa.Column("metrics", JSON, nullable=True),
        sa.Column("cost", INTEGER, nullable=True),
        sa.Column("phase", sa.Text(), nullable=True),
        sa.Column("done", INTEGER, nullable=True),
        sa.Column("total", INTEGER, nullable=True),
        sa.Column("unit", sa.Text(), nullable=True),
        sa.Column("started_at", MOMENT, nullable=True),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["search_id"], ["searches.id"], name=op.f("fk_trials_search_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
        sa.UniqueConstraint("search_id", "number", name=op.f("uq_trials_search_id_number")),
    )
    op.create_index(
        op.f("ix_trials_state_lease_until"), "trials", ["state", "lease_until"], unique=False
    )

    op.create_table(
        "metric_latest",
        sa.Column("trial_id", sa.String(length=60), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", INTEGER, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trials.id"], name=op.f("fk_metric_latest_trial_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trial_id", "name", name=op.f("pk_metric_latest")),
    )
    op.create_table(
        "metric_points",
        sa.Column("trial_id", sa.String(length=60), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", INTEGER, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["trial_id"], ["trials.id"], name=op.f("fk_metric_points_trial_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trial_id", "name", "step", name=op.f("pk_metric_points")),
    )


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_table("metric_points")
    op.drop_table("metric_latest")
    op.drop_table("trials")
    op.drop_table("search_tags")
    op.drop_table("events")
    op.drop_table("searches")
    op.drop_table("idempotency")
    op.drop_table("workers")
    op.drop_table("artifacts")
