"""Which workers live: each says so every few seconds."""

from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.db.queries import insert_or_replace
from service.db.tables import TrialRow, WorkerRow
from service.jobs.views import WorkerView

FORGOTTEN_AFTER = timedelta(days=1)


def note_worker(session: Session, name: str, *, now: datetime) -> None:
    """Take note that a worker lives, and forget those of another day."""
    insert_or_replace(session, WorkerRow, [{"name": name, "seen_at": now}], key=["name"])
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < now - FORGOTTEN_AFTER))


def living_workers(session: Session, *, now: datetime, within: timedelta) -> int:
    """Count the workers that have been heard of lately."""
    lately = WorkerRow.seen_at >= now - within
    return session.scalar(select(func.count()).select_from(WorkerRow).where(lately)) or 0


def workers(session: Session, *, now: datetime, within: timedelta) -> tuple[WorkerView, ...]:
    """Every worker of the last day, the newest first, with the trials that each runs."""
    rows = session.scalars(
        select(WorkerRow).order_by(WorkerRow.seen_at.desc(), WorkerRow.name)
    ).all()
    running: dict[str, list[str]] = {row.name: [] for row in rows}
    held = select(TrialRow.owner, TrialRow.id).where(
        TrialRow.state == "RUNNING", TrialRow.owner.in_(running)
    )
    for owner, trial_id in session.execute(held.order_by(TrialRow.id)):
        running[owner or ""].append(trial_id)
    return tuple(
        WorkerView(row.name, row.seen_at, row.seen_at >= now - within, tuple(running[row.name]))
        for row in rows
    )
