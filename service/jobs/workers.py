"""Which workers live: each says so every few seconds."""

from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.db.queries import insert_or_replace
from service.db.tables import WorkerRow

FORGOTTEN_AFTER = timedelta(days=1)


def note_worker(session: Session, name: str, *, now: datetime) -> None:
    """Take note that a worker lives, and forget those of another day."""
    insert_or_replace(session, WorkerRow, [{"name": name, "seen_at": now}], key=["name"])
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < now - FORGOTTEN_AFTER))


def living_workers(session: Session, *, now: datetime, within: timedelta) -> int:
    """Count the workers that have been heard of lately."""
    lately = WorkerRow.seen_at >= now - within
    return session.scalar(select(func.count()).select_from(WorkerRow).where(lately)) or 0
