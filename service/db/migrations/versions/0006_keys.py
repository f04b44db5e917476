"""API keys and the sessions of the pages; a search and an upload say whose they are."""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"


MOMENT = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Go on to this revision: what there was before is nobody's in particular."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("quota", JSON, nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=True),
        sa.Column("revoked_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "sessions",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_sessions_key_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_key_id"), "sessions", ["key_id"])
    for table in ("searches", "artifacts"):
        op.add_column(table, sa.Column("key_id", sa.String(length=40), nullable=True))
    op.create_index(op.f("ix_searches_key_id_state"), "searches", ["key_id", "state"])
    op.create_index(op.f("ix_artifacts_key_id"), "artifacts", ["key_id"])


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_index(op.f("ix_artifacts_key_id"), table_name="artifacts")
    op.drop_index(op.f("ix_searches_key_id_state"), table_name="searches")
    for table in ("artifacts", "searches"):
        op.drop_column(table, "key_id")
    op.drop_index(op.f("ix_sessions_key_id"), table_name="sessions")
    op.drop_table("sessions")
    op.drop_table("api_keys")
