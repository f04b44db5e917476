"""What deleted searches had cost a key on a day, so that deleting them gives nothing back."""

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"


def upgrade() -> None:
    """Go on to this revision: of what was deleted before, nothing is known."""
    op.create_table(
        "deleted_compute",
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_deleted_compute_key_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key_id", "day", name=op.f("pk_deleted_compute")),
    )


def downgrade() -> None:
    """Go back to the one before."""
    op.drop_table("deleted_compute")
