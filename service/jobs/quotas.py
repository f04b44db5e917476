"""Quotas: what is in use in the name of a key, and how much may be."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import final

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from service.db.tables import ArtifactRow, ComputeRow, EventRow, KeyRow, Moment, SearchRow
from service.errors import QuotaExceeded
from service.jobs.views import ArtifactView
from service.lifecycle import LIVE_SEARCH_STATES
from service.quota import Quota

DAY = timedelta(days=1)
REMEDY = "or let an administrator raise the quota; GET /v1/quota tells what is in use"


@final
@dataclass(frozen=True, slots=True)
class Usage:
    """What is in use now; seconds of computing are those since midnight, UTC."""

    live_searches: int
    compute_seconds_a_day: float
    artifact_bytes: int


def quota_of(session: Session, key_id: str | None, installation: Quota) -> Quota:
    """What holds for a key: its own quota where it has one, else the installation's."""
    row = session.get(KeyRow, key_id) if key_id is not None else None
    if row is None or row.quota is None:
        return installation
    return Quota.model_validate({**installation.model_dump(), **row.quota})


def usage(session: Session, key_id: str | None, *, now: datetime) -> Usage:
    """Count what is in use in the name of a key, or of nobody in particular."""
    return Usage(
        live_searches=_live_searches(session, key_id),
        compute_seconds_a_day=compute_seconds(session, key_id, now=now),
        artifact_bytes=_artifact_bytes(session, key_id),
    )


def check_submission(
    session: Session, key_id: str | None, installation: Quota, *, now: datetime
) -> None:
    """Refuse another search where the quota is used up; who asks at the same time waits."""
    _lock(session, key_id)
    quota = quota_of(session, key_id, installation)
    most = quota.live_searches
    if most is not None and _live_searches(session, key_id) >= most:
        raise QuotaExceeded(
            f"{most} live searches are as many as the quota allows: "
            f"wait until one has ended, cancel one, {REMEDY}"
        )
    check_compute(session, key_id, installation, now=now)


def check_compute(
    session: Session, key_id: str | None, installation: Quota, *, now: datetime
) -> None:
    """Refuse more computing where that of today is used up."""
    budget = quota_of(session, key_id, installation).compute_seconds_a_day
    if budget is not None and (spent := compute_seconds(session, key_id, now=now)) >= budget:
        left = midnight(now) + DAY - now
        raise QuotaExceeded(
            f"{spent:.0f} s of computing are spent today, and the quota allows {budget:.0f} s: "
            f"ask again after midnight (UTC), {REMEDY}",
            retry_after=left,
        )


def check_going_on(session: Session, search_id: str, installation: Quota, *, now: datetime) -> None:
    """Refuse more computing to a search, on the account of whose it is, whoever asks."""
    search = session.get(SearchRow, search_id)
    if search is not None:
        check_compute(session, search.key_id, installation, now=now)


def check_upload(
    session: Session, key_id: str | None, installation: Quota, artifact: ArtifactView
) -> None:
    """Refuse an upload for which there is no room; the same bytes again need none."""
    _lock(session, key_id)
    if session.get(ArtifactRow, artifact.id) is not None:
        return
    room = upload_room(session, key_id, installation)
    if room is not None and artifact.bytes > room:
        raise no_room(room)


def upload_room(session: Session, key_id: str | None, installation: Quota) -> int | None:
    """How many bytes may still be uploaded; None without a limit."""
    most = quota_of(session, key_id, installation).artifact_bytes
    return None if most is None else max(0, most - _artifact_bytes(session, key_id))


def no_room(room: int) -> QuotaExceeded:
    """Say why an upload does not fit."""
    return QuotaExceeded(
        f"this upload does not fit: the quota leaves {room:,} bytes. "
        f"What no search names is removed after some days: wait for that, {REMEDY}"
    )


def compute_seconds(session: Session, key_id: str | None, *, now: datetime) -> float:
    """For how long trials have run since midnight, side by side counted each."""
    recent = or_(SearchRow.ended_at.is_(None), SearchRow.ended_at >= midnight(now))
    there = _ran(session, select(SearchRow.id).where(SearchRow.key_id == key_id, recent), now)
    if key_id is None:
        return there
    deleted = session.get(ComputeRow, (key_id, _day(now)))
    return there + (deleted.seconds if deleted is not None else 0.0)


def keep_account(session: Session, search_id: str, *, now: datetime) -> None:
    """Keep in mind what a search has cost its key today, for it is about to be deleted."""
    search = session.get(SearchRow, search_id)
    if search is None or search.key_id is None:
        return
    seconds = _ran(session, select(SearchRow.id).where(SearchRow.id == search_id), now)
    _lock(session, search.key_id)
    account = session.get(ComputeRow, (search.key_id, _day(now)), populate_existing=True)
    if account is None:
        session.add(ComputeRow(key_id=search.key_id, day=_day(now), seconds=seconds))
    else:
        account.seconds += seconds
    session.flush()


def _ran(session: Session, searches: Select[str], now: datetime) -> float:
    """By the events: a trial runs from the one that says so to its next, whichever that is."""
    day = midnight(now)
    following = func.lead(EventRow.at, type_=Moment()).over(
        partition_by=[EventRow.search_id, EventRow.trial_number], order_by=EventRow.id
    )
    told = (
        select(EventRow.state, EventRow.at.label("began"), following.label("ended"))
        .where(EventRow.kind == "trial", EventRow.search_id.in_(searches))
        .subquery()
    )
    runs = session.execute(
        select(told.c.began, told.c.ended).where(
            told.c.state == "RUNNING", or_(told.c.ended.is_(None), told.c.ended >= day)
        )
    )
    total = timedelta()
    for began, ended in runs:
        total += max(timedelta(), min(ended or now, now) - max(began, day))
    return total.total_seconds()


def _day(now: datetime) -> str:
    return midnight(now).date().isoformat()


def midnight(now: datetime) -> datetime:
    """When the day began that quotas are told by."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _lock(session: Session, key_id: str | None) -> None:
    """Let two requests with one key not both take the last place; SQLite has one writer anyway."""
    if key_id is not None:
        session.execute(select(KeyRow.id).where(KeyRow.id == key_id).with_for_update())


def _live_searches(session: Session, key_id: str | None) -> int:
    live = SearchRow.state.in_(LIVE_SEARCH_STATES)
    count = select(func.count()).select_from(SearchRow).where(SearchRow.key_id == key_id, live)
    return session.scalar(count) or 0


def _artifact_bytes(session: Session, key_id: str | None) -> int:
    total = select(func.sum(ArtifactRow.bytes)).where(ArtifactRow.key_id == key_id)
    return int(session.scalar(total) or 0)
