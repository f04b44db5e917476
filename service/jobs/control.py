"""What a client can do to a search that is there: stop, pause, resume, change and delete it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from search.plan import planned_trials
from search.spec import SearchSpec
from service.db.tables import SearchRow, TagRow
from service.errors import SpecRefused, WrongState
from service.jobs.planning import trial_row_of
from service.jobs.reading import get_search
from service.jobs.transitions import (
    PAUSED,
    Cause,
    advance,
    append_event,
    append_waiting,
    cancel_waiting,
    lock_search,
    move_search,
    trials_of,
)
from service.jobs.views import SearchView

ASKED = "the client asked for it"


def cancel(session: Session, search_id: str, asked: Cause) -> SearchView:
    """Begin nothing more and ask what runs to stop; asking twice is harmless."""
    search = lock_search(session, search_id)
    match search.state:
        case "STOPPING" | "CANCELLED":
            pass
        case _:
            _stop(session, search, asked.because("user_cancel", ASKED))
    return get_search(session, search_id, now=asked.at)


def kill(session: Session, search_id: str, asked: Cause) -> SearchView:
    """End what runs at once, without a checkpoint; a search that is being cancelled, too."""
    search = lock_search(session, search_id)
    cause = asked.because("killed", ASKED)
    match search.state:
        case "CANCELLED":
            pass
        case "STOPPING":
            if search.reason != "killed":
                move_search(session, search, "STOPPING", cause)
        case _:
            _stop(session, search, cause)
    return get_search(session, search_id, now=asked.at)


def pause(session: Session, search_id: str, asked: Cause) -> SearchView:
    """Begin nothing more, and let what runs go on later from where it is; twice is harmless."""
    search = lock_search(session, search_id)
    cause = asked.because("user_pause", ASKED)
    match search.state:
        case "QUEUED":
            paused = cause.because("user_pause", PAUSED)
            move_search(session, search, "PAUSED", paused, paused_at=asked.at)
        case "RUNNING":
            move_search(session, search, "PAUSING", cause)
            advance(session, search, cause)
        case "PAUSING" | "PAUSED":
            pass
        case _:
            raise WrongState(f"only a live search can be paused; this one is {search.state}")
    return get_search(session, search_id, now=asked.at)


def resume(session: Session, search_id: str, asked: Cause) -> SearchView:
    """Let a paused search go on; the pause does not count as its time."""
    search = lock_search(session, search_id)
    match search.state:
        case "PAUSED":
            deadline, since = search.deadline_at, search.paused_at
            if deadline is not None and since is not None:
                deadline += asked.at - since
            move_search(session, search, "QUEUED", asked, paused_at=None, deadline_at=deadline)
        case "QUEUED" | "RUNNING":
            pass
        case "PAUSING":
            raise WrongState("the search is still PAUSING; it can be resumed once it is PAUSED")
        case _:
            raise WrongState(f"only a paused search can be resumed; this one is {search.state}")
    return get_search(session, search_id, now=asked.at)


def amend(session: Session, search_id: str, changes: Mapping[str, Any], asked: Cause) -> SearchView:
    """Change the `name`, the `tags`, the `priority` of a search, or give it more `compute`."""
    search = lock_search(session, search_id)
    before = SearchSpec.model_validate(search.spec | {"priority": search.priority})
    after = _amended(before, changes)
    if after.compute != before.compute:
        _check_more(search, before, after)
        _replan(session, search, before, after, asked)
        _move_deadline(search, before, after)
    if after.tags != before.tags:
        session.execute(delete(TagRow).where(TagRow.search_id == search_id))
        session.add_all(TagRow(search_id=search_id, tag=tag) for tag in dict.fromkeys(after.tags))
    names = ("name", "tags", "compute", "priority")
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    if changed:
        search.name, search.priority = after.name, after.priority
        search.spec = after.model_dump(mode="json")
        session.flush()
        cause = asked.because("", f"the client changed {', '.join(changed)}")
        # Its state is what it was: who waits for that, as webhooks do, is not told again.
        append_event(session, search_id, "change", search.state, cause)
    return get_search(session, search_id, now=asked.at)


def delete_search(session: Session, search_id: str) -> None:
    """Remove every row of a search that has ended; its files are the caller's to remove."""
    search = lock_search(session, search_id)
    if search.ended_at is None:
        sentence = f"only a search that has ended can be deleted; this one is {search.state}"
        raise WrongState(f"{sentence}: cancel it first")
    session.execute(
        delete(SearchRow)
        .where(SearchRow.id == search_id)
        .execution_options(synchronize_session=False)
    )
    session.expunge(search)


def _stop(session: Session, search: SearchRow, cause: Cause) -> None:
    if search.ended_at is not None:
        raise WrongState(f"the search has already ended: it is {search.state}")
    move_search(session, search, "STOPPING", cause)
    cancel_waiting(session, trials_of(session, search.id), cause)
    advance(session, search, cause)


def _amended(before: SearchSpec, changes: Mapping[str, Any]) -> SearchSpec:
    body = before.model_dump(mode="json")
    for name in ("name", "tags", "priority"):
        if name in changes:
            body[name] = changes[name]
    body["compute"] |= changes.get("compute", {})
    return SearchSpec.model_validate(body)


def _check_more(search: SearchRow, before: SearchSpec, after: SearchSpec) -> None:
    if search.ended_at is not None or search.state == "STOPPING":
        sentence = f"a search that is {search.state} takes no more compute"
        raise WrongState(f"{sentence}; clone it to go on with what it has learned")
    if after.compute.trials < before.compute.trials:
        raise SpecRefused(
            f"compute.trials is {after.compute.trials}, but can only grow, from "
            f"{before.compute.trials}; cancel the search to end it sooner",
            field="compute.trials",
        )
    old, new = before.compute.seconds, after.compute.seconds
    if new is not None and (old is None or new < old):
        bound = "without a bound" if old is None else f"{old:g}"
        raise SpecRefused(
            f"compute.seconds is {new:g}, but can only grow, and is {bound} now; "
            "cancel the search to end it sooner",
            field="compute.seconds",
        )


def _move_deadline(search: SearchRow, before: SearchSpec, after: SearchSpec) -> None:
    old, new = before.compute.seconds, after.compute.seconds
    if new is None or old is None or search.deadline_at is None:
        search.deadline_at = None if new is None else search.deadline_at
    elif new != old:
        search.deadline_at += timedelta(seconds=new - old)


def _replan(
    session: Session, search: SearchRow, before: SearchSpec, after: SearchSpec, cause: Cause
) -> None:
    """Put the trials that more candidates make in the place of those that nobody has begun."""
    old, new = planned_trials(before), planned_trials(after)
    if old == new:
        return
    rows = trials_of(session, search.id)
    kept = {row.number for row in rows if row.attempt or row.state != "WAITING"}
    moved = [
        planned.name for planned in old if planned.number in kept and planned != new[planned.number]
    ]
    if moved:
        raise WrongState(
            f"{moved[0]} comes after the candidates and has begun: there can be no more of them"
        )
    for row in rows:
        if row.number not in kept:
            session.delete(row)
    session.flush()
    fresh = [planned for planned in new if planned.number not in kept]
    session.add_all(trial_row_of(search.id, planned) for planned in fresh)
    session.flush()
    added = [planned.number for planned in fresh if planned.number >= len(old)]
    append_waiting(session, search.id, added, cause)
