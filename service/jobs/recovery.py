"""What nobody else would notice: leases that ran out, time that is up, hints that got lost."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.orm import Session

from search.spec import SearchSpec
from service.db.tables import SearchRow, TrialRow
from service.jobs.past import optional, ready
from service.jobs.transitions import (
    REAPER,
    Cause,
    advance,
    lock_search,
    lose,
    move_trial,
    trials_of,
)
from service.lifecycle import CLAIMABLE_SEARCH_STATES


def hints_due(
    session: Session, *, now: datetime, again_after: timedelta, search_id: str | None = None
) -> list[str]:
    """The trials that may start and of which no message went out lately; they count as sent.

    Those of one search, where only that can have changed anything, or of all.

    The waiting row is the outbox: a message that is lost is sent again, one that comes twice finds
    its trial taken.
    """
    lately = now - again_after, now + again_after
    searches = session.scalars(
        select(SearchRow)
        .where(SearchRow.state.in_(CLAIMABLE_SEARCH_STATES))
        .where(SearchRow.id.in_(_searches_with_unsent(lately, search_id)))
        .order_by(SearchRow.priority.desc(), SearchRow.created_at, SearchRow.id)
        # Whoever is changing a search just now hints at what follows from it afterwards.
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    ).all()
    due = [
        trial.id
        for search in searches
        for trial in ready(
            search,
            trials_of(session, search.id),
            SearchSpec.model_validate(search.spec),
            now=now,
        )
        if trial.hinted_at is None or not lately[0] < trial.hinted_at < lately[1]
    ]
    session.execute(
        update(TrialRow)
        .where(TrialRow.id.in_(due), TrialRow.state == "WAITING")
        .values(hinted_at=now, ready_at=func.coalesce(TrialRow.ready_at, now))
        .execution_options(synchronize_session=False)
    )
    return due


def owners(session: Session) -> set[str]:
    """Name the workers that have claimed something."""
    found = session.scalars(select(TrialRow.owner).where(TrialRow.state == "RUNNING").distinct())
    return {owner for owner in found if owner is not None}


def recover(
    session: Session, *, now: datetime, max_attempts: int, gone: Collection[str] = ()
) -> None:
    """Put back what its worker has left, and cancel what there is no time for.

    The workers `gone` are known to be dead: nobody waits for their leases.
    """
    for search_id in _searches_to_mend(session, now, gone):
        search = lock_search(session, search_id)
        trials = trials_of(session, search_id)
        unheard = "its worker has not been heard of in time"
        lost = Cause(REAPER, now, "worker_lost", unheard, search.request_id)
        dead = lost.because("worker_lost", "its worker's process is gone")
        for trial in trials:
            if trial.state == "RUNNING" and trial.owner in gone:
                lose(session, trial, dead, max_attempts=max_attempts)
            elif trial.state == "RUNNING" and trial.lease_until and trial.lease_until < now:
                lose(session, trial, lost, max_attempts=max_attempts)
        if search.deadline_at is not None and search.deadline_at <= now:
            late = lost.because("compute_exhausted", "the search's time is over")
            for trial in trials:
                if trial.state == "WAITING" and optional(trial):
                    move_trial(session, trial, "CANCELLED", late)
        advance(session, search, lost)


def _searches_with_unsent(lately: tuple[datetime, datetime], search_id: str | None) -> Select[str]:
    """What was sent in the future was sent by a clock that has been set back since."""
    since, until = lately
    unsent = (
        select(TrialRow.search_id)
        .where(TrialRow.state == "WAITING")
        .where(
            or_(
                TrialRow.hinted_at.is_(None),
                TrialRow.hinted_at <= since,
                TrialRow.hinted_at >= until,
            )
        )
    )
    return unsent if search_id is None else unsent.where(TrialRow.search_id == search_id)


def _searches_to_mend(session: Session, now: datetime, gone: Collection[str]) -> Sequence[str]:
    # In one order everywhere, so that two reapers never wait for each other.
    expired = select(TrialRow.search_id).where(
        TrialRow.state == "RUNNING",
        or_(TrialRow.lease_until < now, TrialRow.owner.in_(gone)),
    )
    late = (
        select(SearchRow.id)
        .join(TrialRow, TrialRow.search_id == SearchRow.id)
        .where(
            SearchRow.state == "RUNNING",
            SearchRow.deadline_at <= now,
            TrialRow.state == "WAITING",
            or_(TrialRow.kind == "candidate", TrialRow.repeat > 0),
        )
    )
    return session.scalars(expired.union(late).order_by("search_id")).all()
