"""What becomes of a key's searches once its computing of today is used up."""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.tables import KeyRow, SearchRow
from service.jobs.quotas import compute_seconds, quota_of
from service.jobs.transitions import (
    REAPER,
    Cause,
    advance,
    lock_search,
    move_search,
    move_trial,
    trials_of,
)
from service.quota import Quota

SPENT = "the computing that the quota allows in a day is used up"


def stop_spent(session: Session, installation: Quota, *, now: datetime) -> None:
    """Stop the searches of each key that has computed as much today as it may.

    What runs is given up and what is done is measured: a search ends SUCCEEDED with something
    within its budget, else FAILED. What has begun nothing just now is paused, and loses nothing.
    """
    for search_id in sorted(_searches_of_the_spent(session, installation, now)):
        search = lock_search(session, search_id)
        spent = Cause(REAPER, now, "compute_exhausted", SPENT, search.request_id)
        if search.state == "QUEUED":
            later = spent.because("compute_exhausted", f"{SPENT}: resume it after midnight (UTC)")
            move_search(session, search, "PAUSED", later, paused_at=now)
        elif search.state == "RUNNING":
            for trial in trials_of(session, search_id):
                if trial.state in ("WAITING", "RUNNING") and trial.kind != "measurement":
                    move_trial(session, trial, "CANCELLED", spent)
            advance(session, search, spent)


def _searches_of_the_spent(session: Session, installation: Quota, now: datetime) -> Iterator[str]:
    if installation.compute_seconds_a_day is None and not _own_quotas(session):
        return
    begun = SearchRow.state.in_(("QUEUED", "RUNNING"))
    searches: dict[str | None, list[str]] = {}
    for search_id, key_id in session.execute(select(SearchRow.id, SearchRow.key_id).where(begun)):
        searches.setdefault(key_id, []).append(search_id)
    for key_id, ids in searches.items():
        most = quota_of(session, key_id, installation).compute_seconds_a_day
        if most is not None and compute_seconds(session, key_id, now=now) >= most:
            yield from ids


def _own_quotas(session: Session) -> bool:
    """Whether any key has a quota for itself."""
    own = select(KeyRow.id).where(KeyRow.quota.is_not(None)).limit(1)
    return session.scalar(own) is not None
