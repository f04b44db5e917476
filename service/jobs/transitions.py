"""How a state changes: one conditional update, one event row, and what follows from it."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast, final

from sqlalchemy import CursorResult, event, insert, select, update
from sqlalchemy.orm import Session

from search.plan import ENDED, TrialState
from service.db.tables import EventRow, SearchRow, TrialRow
from service.errors import SearchNotFound
from service.jobs.counting import count
from service.jobs.estimate import ran
from service.jobs.webhooks import announce
from service.lifecycle import SEARCH_TRANSITIONS, TRIAL_TRANSITIONS, Reason, SearchState

REAPER = "reaper"
# Whoever asked, where there are no keys to name them by.
CLIENT = "client"
PAUSED = "nothing runs until it is resumed"

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class Cause:
    """Who changes a state, when, why and on which request.

    What a worker or the reaper does is done on the request that last decided on the search.
    """

    actor: str
    at: datetime
    reason: Reason = ""
    sentence: str = ""
    request_id: str | None = None

    def because(self, reason: Reason, sentence: str) -> "Cause":
        """The same actor and moment, with another reason."""
        return Cause(self.actor, self.at, reason, sentence, self.request_id)


def lock_search(session: Session, search_id: str) -> SearchRow:
    """Take the search for this transaction, so that its transitions happen one after another.

    Its events are thereby committed in the order of their ids, which a reader of the feed needs.
    """
    statement = (
        select(SearchRow)
        .where(SearchRow.id == search_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    row = session.scalars(statement).one_or_none()
    if row is None:
        raise SearchNotFound(search_id)
    return row


def move_search(
    session: Session, search: SearchRow, state: SearchState, cause: Cause, **values: Any
) -> None:
    """Change a locked search, where its version is still the one that was read."""
    assert state in SEARCH_TRANSITIONS[cast("SearchState", search.state)]
    for name, value in values.items():
        setattr(search, name, value)
    search.state, search.reason, search.sentence = state, cause.reason, cause.sentence
    search.request_id = cause.request_id or search.request_id
    if not SEARCH_TRANSITIONS[state]:
        search.ended_at = cause.at
    session.flush()
    append_event(session, search.id, "search", state, cause)


def move_trial(
    session: Session, trial: TrialRow, state: TrialState, cause: Cause, **values: Any
) -> bool:
    """Change a trial that still is in the state and the attempt that were read, or return False."""
    assert state in TRIAL_TRANSITIONS[cast("TrialState", trial.state)]
    changes: dict[str, Any] = {
        "state": state,
        "reason": cause.reason,
        "sentence": cause.sentence,
        "ready_at": None,
    }
    if state != "RUNNING":
        changes |= {"lease_until": None, "hinted_at": None}
    if not TRIAL_TRANSITIONS[state]:
        changes |= {"ended_at": cause.at}
    if trial.state == "RUNNING":
        # Of one that was lost nobody knows more than that it ran no longer than its lease.
        changes |= {"ran_seconds": ran(trial, min(cause.at, trial.lease_until or cause.at))}
    statement = (
        update(TrialRow)
        .where(
            TrialRow.id == trial.id,
            TrialRow.state == trial.state,
            TrialRow.attempt == trial.attempt,
        )
        .values(changes | values)
        .execution_options(synchronize_session=False)
    )
    if not rows_changed(session.execute(statement)):
        return False
    session.refresh(trial)
    append_event(
        session, trial.search_id, "trial", state, cause, number=trial.number, attempt=trial.attempt
    )
    return True


def append_event(
    session: Session,
    search_id: str,
    kind: str,
    state: str,
    cause: Cause,
    *,
    number: int | None = None,
    attempt: int | None = None,
) -> None:
    """Say what has just become of a search or of a trial."""
    inserted = session.execute(
        insert(EventRow)
        .values(
            search_id=search_id,
            trial_number=number,
            attempt=attempt,
            kind=kind,
            state=state,
            reason=cause.reason,
            sentence=cause.sentence,
            actor=cause.actor,
            request_id=cause.request_id,
            at=cause.at,
        )
        .returning(EventRow.id)
    )
    about = f"{kind}.{state.lower()}"
    announce(session, inserted.scalar_one(), kind=about, search_id=search_id, now=cause.at)
    if state != "WAITING" or attempt:  # not each of a new search's trials
        facts = {"search_id": search_id, "trial": number, "attempt": attempt}
        facts |= {"request_id": cause.request_id} if cause.request_id else {}
        event.listen(
            session, "after_commit", lambda _: _log_transition(state, cause, facts), once=True
        )


def append_waiting(
    session: Session, search_id: str, numbers: Collection[int], cause: Cause
) -> None:
    """Say in one statement that trials have begun to wait."""
    if not numbers:
        return
    common = {
        "search_id": search_id,
        "attempt": 0,
        "kind": "trial",
        "state": "WAITING",
        "reason": cause.reason,
        "sentence": cause.sentence,
        "actor": cause.actor,
        "request_id": cause.request_id,
        "at": cause.at,
    }
    inserted = session.scalars(
        insert(EventRow).returning(EventRow.id, sort_by_parameter_order=True),
        [common | {"trial_number": number} for number in numbers],
    )
    for event_id in inserted:
        announce(session, event_id, kind="trial.waiting", search_id=search_id, now=cause.at)


def trials_of(session: Session, search_id: str) -> Sequence[TrialRow]:
    """Every trial of a search as it is now, in order."""
    statement = (
        select(TrialRow)
        .where(TrialRow.search_id == search_id)
        .order_by(TrialRow.number)
        .execution_options(populate_existing=True)
    )
    return session.scalars(statement).all()


def cancel_waiting(session: Session, trials: Sequence[TrialRow], cause: Cause) -> None:
    """Give up those that nobody has begun."""
    for trial in trials:
        if trial.state == "WAITING":
            move_trial(session, trial, "CANCELLED", cause)


def lose(session: Session, trial: TrialRow, cause: Cause, *, max_attempts: int) -> bool:
    """Put a trial whose worker died back, or give it up after `max_attempts` such attempts."""
    losses = trial.losses + 1
    if not move_trial(session, trial, "LOST", cause, losses=losses):
        return False
    count(session, "lost_leases" if cause.actor == REAPER else "lost_processes")
    if losses >= max_attempts:
        sentence = f"its worker died in each of {losses} attempts"
        move_trial(session, trial, "FAILED", cause.because(cause.reason, sentence))
    elif put_back(session, trial, cause) and trial.state == "WAITING":
        count(session, "retries")
    return True


def put_back(session: Session, trial: TrialRow, cause: Cause, **values: Any) -> bool:
    """Let another attempt go on from the last checkpoint, unless the search is being stopped."""
    search = lock_search(session, trial.search_id)
    if search.state == "STOPPING":
        return move_trial(session, trial, "CANCELLED", _stopped(search, cause))
    return move_trial(session, trial, "WAITING", cause, **values)


def advance(session: Session, search: SearchRow, cause: Cause) -> None:
    """Draw the conclusions for a locked search, after one of its trials has moved."""
    trials = trials_of(session, search.id)
    if search.state == "STOPPING":
        if not any(trial.state == "RUNNING" for trial in trials):
            move_search(session, search, "CANCELLED", _stopped(search, cause))
        return
    if search.state not in ("RUNNING", "PAUSING"):
        return
    reference, *tried, measurement = trials
    if _failed(reference):
        sentence = "the reference, which everything is compared with, failed"
        cancel_waiting(session, trials, cause.because("prerequisite_failed", sentence))
        move_search(session, search, "FAILED", _reason_of(reference, cause))
    elif spoilt := _nothing_found(tried):
        sentence = "nothing within the budget was completed, so there is nothing to measure"
        cancel_waiting(session, trials, cause.because("prerequisite_failed", sentence))
        move_search(session, search, "FAILED", _reason_of(spoilt, cause))
    elif _failed(measurement):
        move_search(session, search, "FAILED", _reason_of(measurement, cause))
    elif measurement.state == "COMPLETE":
        exhausted = next((one for one in trials if one.reason == "compute_exhausted"), None)
        ended = cause.because("", "")
        if exhausted is not None:
            ended = cause.because("compute_exhausted", exhausted.sentence)
        move_search(session, search, "SUCCEEDED", ended)
    elif search.state == "PAUSING" and not any(trial.state == "RUNNING" for trial in trials):
        paused = cause.because("user_pause", PAUSED)
        move_search(session, search, "PAUSED", paused, paused_at=cause.at)


def rows_changed(result: Any) -> int:
    """How many rows a statement touched."""
    return cast("CursorResult[Any]", result).rowcount


def _log_transition(state: str, cause: Cause, facts: dict[str, Any]) -> None:
    number = facts["trial"]
    whose = "the search" if number is None else f"trial {number}"
    why = ", ".join(part for part in (cause.reason, cause.sentence) if part)
    said = f"{whose} is {state}, by {cause.actor}" + (f": {why}" if why else "")
    log.info("%s", said, extra={name: fact for name, fact in facts.items() if fact is not None})


def _stopped(search: SearchRow, cause: Cause) -> Cause:
    """Whoever does it, it is because the search is being cancelled, or killed."""
    if search.reason == "killed":
        return cause.because("killed", "the search was killed")
    return cause.because("user_cancel", "the search was cancelled")


def _failed(trial: TrialRow) -> bool:
    return trial.state in ENDED and trial.state != "COMPLETE"


def _nothing_found(tried: Sequence[TrialRow]) -> TrialRow | None:
    """The first that failed or had no time, where all have ended and none of them is complete."""
    if any(trial.state == "COMPLETE" or trial.state not in ENDED for trial in tried):
        return None
    why = (one for one in tried if one.state == "FAILED" or one.reason == "compute_exhausted")
    return next(why, None)


def _reason_of(trial: TrialRow, cause: Cause) -> Cause:
    sentence = f"{trial.name}: {trial.sentence}" if trial.sentence else f"{trial.name} failed"
    return cause.because(cast("Reason", trial.reason), sentence)
