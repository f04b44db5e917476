"""One attempt at a trial, from its claim to its end: each write is fenced by the attempt's number.

Whoever has been replaced changes no row, and learns it from the answer.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from models.cost import Quantity
from models.spec import NetworkSpec
from search.layer_costs import LayerCosts
from search.plan import PlannedTrial, planned_trials, prerequisites
from search.report import Report
from search.spec import LearnerSettings, SearchSpec
from search.warm import EarlierCandidate
from service.db.queries import insert_or_replace
from service.db.tables import LatestRow, PointRow, SearchRow, TrialRow
from service.jobs.best import OBJECTIVE, bests_of, note_bests
from service.jobs.past import past_trials, ready
from service.jobs.transitions import (
    Cause,
    advance,
    lock_search,
    lose,
    move_search,
    move_trial,
    put_back,
    rows_changed,
    trials_of,
)
from service.jobs.views import Claim, Ending, Point, Renewal, Stage
from service.lifecycle import CLAIMABLE_SEARCH_STATES, Reason

Wish = Literal["go on", "stop", "end", "over"]


def claim(
    session: Session, trial_id: str, *, owner: str, now: datetime, lease: timedelta
) -> Claim | None:
    """Take a trial that waits and may start, or None: a hint that comes twice finds nothing."""
    trial = session.get(TrialRow, trial_id)
    if trial is None or trial.state != "WAITING":
        return None
    search = lock_search(session, trial.search_id)
    session.refresh(trial)
    if search.state not in CLAIMABLE_SEARCH_STATES or trial.state != "WAITING":
        return None
    spec = SearchSpec.model_validate(search.spec)
    if trial not in ready(search, trials_of(session, search.id), spec, now=now):
        return None
    cause = Cause(f"worker {owner}", now, request_id=search.request_id)
    taken = move_trial(
        session,
        trial,
        "RUNNING",
        cause,
        attempt=trial.attempt + 1,
        owner=owner,
        lease_until=now + lease,
        started_at=trial.started_at or now,
        begun_at=now,
    )
    if not taken:
        return None
    if search.state == "QUEUED":
        move_search(session, search, "RUNNING", cause, **_begun(search, spec, now))
    return _claim(session, trial, search, spec)


def hold(
    session: Session, claim: Claim, *, until: datetime, now: datetime, lease: timedelta
) -> datetime | None:
    """Keep a claim for a process that is still starting; None once it keeps it itself.

    `until` is what the lease was when this was last done, or when the claim was made.
    """
    statement = (
        update(TrialRow)
        .where(
            TrialRow.id == claim.trial_id,
            TrialRow.attempt == claim.attempt,
            TrialRow.state == "RUNNING",
            TrialRow.lease_until == until,
        )
        .values(lease_until=now + lease)
        .execution_options(synchronize_session=False)
    )
    return now + lease if rows_changed(session.execute(statement)) else None


def claimed(session: Session, trial_id: str, *, attempt: int) -> Claim | None:
    """The claim again, for the process that runs it, if it still holds."""
    trial = session.get(TrialRow, trial_id)
    if trial is None or trial.state != "RUNNING" or trial.attempt != attempt:
        return None
    search = session.get_one(SearchRow, trial.search_id)
    return _claim(session, trial, search, SearchSpec.model_validate(search.spec))


def wish(session: Session, claim: Claim) -> Wish:
    """What the client wants of the process of this attempt: to go on, to stop, to be ended.

    Or it is `over`: the attempt has ended or been replaced, and its process has nothing left to do.
    """
    holds = (TrialRow.id == claim.trial_id, TrialRow.attempt == claim.attempt)
    statement = (
        select(SearchRow.state, SearchRow.reason)
        .join(TrialRow, TrialRow.search_id == SearchRow.id)
        .where(*holds, TrialRow.state == "RUNNING")
    )
    found = session.execute(statement).one_or_none()
    if found is None:
        return "over"
    if found.state not in {"STOPPING", "PAUSING"}:
        return "go on"
    return "end" if tuple(found) == ("STOPPING", "killed") else "stop"


def renew(session: Session, claim: Claim, *, now: datetime, lease: timedelta) -> Renewal:
    """Keep the claim for another while, and learn whether to stop."""
    return _write(session, claim, {"lease_until": now + lease})


def record(
    session: Session, claim: Claim, *, stage: Stage | None, points: Sequence[Point]
) -> Renewal:
    """Write where the trial stands and the newest points of its curves, all or nothing."""
    values: dict[str, Any] = {}
    if stage is not None:
        values = {
            "phase": stage.phase,
            "done": stage.done,
            "total": stage.total,
            "unit": stage.unit,
        }
    losses = [point.value for point in points if point.name == OBJECTIVE]
    if losses:
        values["loss"] = finite(losses[-1])
    renewal = _write(session, claim, values)
    if renewal.still_mine:
        # One statement must not meet a key twice: the last value of a step is the value.
        steps = {(point.name, point.step): point for point in points}
        insert_or_replace(
            session,
            PointRow,
            [_point_row(claim.trial_id, point) for point in steps.values()],
            key=["trial_id", "name", "step"],
        )
        newest = {point.name: point for point in points}
        insert_or_replace(
            session,
            LatestRow,
            [_point_row(claim.trial_id, point) for point in newest.values()],
            key=["trial_id", "name"],
        )
    return renewal


def save_settings(session: Session, claim: Claim, settings: LearnerSettings) -> Renewal:
    """Write what was proposed before it is tried, so that a retry tries the same."""
    return _write(session, claim, {"settings": settings.model_dump(mode="json")})


def finish(session: Session, claim: Claim, ending: Ending, *, now: datetime) -> bool:
    """End the attempt and draw the search's conclusions; False if it had been replaced."""
    search = lock_search(session, claim.search_id)
    trial = _running(session, claim.trial_id, claim.attempt)
    if trial is None:
        return False
    cause = Cause(f"worker {trial.owner}", now, ending.reason, ending.sentence, search.request_id)
    values: dict[str, Any] = {}
    if ending.network is not None:
        values["network"] = ending.network.model_dump(mode="json")
        values["cost"] = _eligible_cost(search, ending.network, ending.times)
    if ending.times is not None:
        values["times"] = dict(ending.times)
    if ending.metrics is not None:
        values["metrics"] = {name: finite(value) for name, value in ending.metrics.items()}
        if OBJECTIVE in values["metrics"]:
            values["loss"] = values["metrics"][OBJECTIVE]
    if not move_trial(session, trial, ending.state, cause, **values):
        return False
    if ending.profile is not None:
        search.profile = ending.profile.model_dump(mode="json")
        if ending.profile.times is not None:
            search.smallest_cost = ending.profile.times.smallest_cost
    if ending.report is not None:
        search.report = ending.report.model_dump(mode="json")
        _note_latencies(session, search.id, ending.report)
    note_bests(search, bests_of(search, claim.spec, trials_of(session, search.id)))
    advance(session, search, cause)
    return True


def release(
    session: Session,
    trial_id: str,
    *,
    attempt: int,
    reason: Reason,
    sentence: str,
    now: datetime,
    max_attempts: int,
) -> bool:
    """Say that an attempt's process is gone: `worker_lost` counts as a loss, others do not.

    After `disk_full` and `store_away` the next hint waits as if one had just been sent: there may
    be room by then, or an answer.

    False if the attempt had already ended or had been replaced.
    """
    found = session.get(TrialRow, trial_id)
    if found is None:
        return False
    search = lock_search(session, found.search_id)
    trial = _running(session, trial_id, attempt)
    if trial is None:
        return False
    cause = Cause(f"worker {trial.owner}", now, reason, sentence, search.request_id)
    if reason == "worker_lost":
        moved = lose(session, trial, cause, max_attempts=max_attempts)
    else:
        later = {"hinted_at": now} if reason in {"disk_full", "store_away"} else {}
        moved = put_back(session, trial, cause, **later)
    if moved:
        advance(session, search, cause)
    return moved


def finite(value: float) -> float | None:
    """The number, or None for what neither JSON nor SQLite can hold."""
    return value if value - value == 0.0 else None


def _begun(search: SearchRow, spec: SearchSpec, now: datetime) -> dict[str, Any]:
    """When a search begins and must end; one that was paused goes on with what it had."""
    if search.started_at is not None:
        return {}
    seconds = spec.compute.seconds
    deadline = None if seconds is None else now + timedelta(seconds=seconds)
    return {"started_at": now, "deadline_at": deadline}


def _note_latencies(session: Session, search_id: str, report: Report) -> None:
    for row in report.rows:
        measured = (TrialRow.search_id == search_id, TrialRow.number == row.number)
        session.execute(
            update(TrialRow)
            .where(*measured)
            .values(latency_ratio=row.latency_ratio)
            .execution_options(synchronize_session=False)
        )


def _claim(session: Session, trial: TrialRow, search: SearchRow, spec: SearchSpec) -> Claim:
    plan = planned_trials(spec)
    planned = plan[trial.number]
    needed = {other.number for other in prerequisites(planned, plan, spec)}
    settings = trial.settings
    assert trial.lease_until is not None, "a claim has one"
    return Claim(
        trial_id=trial.id,
        search_id=trial.search_id,
        attempt=trial.attempt,
        lease_until=trial.lease_until,
        spec=spec,
        planned=planned,
        settings=None if settings is None else LearnerSettings.model_validate(settings),
        history=past_trials(session, trial.search_id, plan, needed),
        earlier=_earlier(search, planned),
        request_id=search.request_id,
        trace=search.trace,
    )


def _earlier(search: SearchRow, planned: PlannedTrial) -> tuple[EarlierCandidate, ...]:
    if search.warm_start is None or planned.kind != "candidate":
        return ()
    return tuple(EarlierCandidate.model_validate(one) for one in search.earlier or ())


def _running(session: Session, trial_id: str, attempt: int) -> TrialRow | None:
    statement = (
        select(TrialRow)
        .where(TrialRow.id == trial_id, TrialRow.state == "RUNNING", TrialRow.attempt == attempt)
        .execution_options(populate_existing=True)
    )
    return session.scalars(statement).one_or_none()


def _write(session: Session, claim: Claim, values: dict[str, Any]) -> Renewal:
    holds = (
        TrialRow.id == claim.trial_id,
        TrialRow.attempt == claim.attempt,
        TrialRow.state == "RUNNING",
    )
    if values:
        statement = update(TrialRow).where(*holds).values(values)
        result = session.execute(statement.execution_options(synchronize_session=False))
        if not rows_changed(result):
            return Renewal(still_mine=False, stop=True)
    state = session.scalars(
        select(SearchRow.state).join(TrialRow, TrialRow.search_id == SearchRow.id).where(*holds)
    ).one_or_none()
    return Renewal(
        still_mine=state is not None,
        stop=state is None or state == "STOPPING",
        pause=state == "PAUSING",
    )


def _point_row(trial_id: str, point: Point) -> dict[str, Any]:
    value = finite(point.value)
    return {"trial_id": trial_id, "name": point.name, "step": point.step, "value": value}


def _eligible_cost(
    search: SearchRow, network: NetworkSpec, times: Mapping[str, int] | None
) -> int | None:
    costs = LayerCosts(cast("Quantity", search.quantity), times, times)
    eligible = frozenset(search.eligible)
    found = [costs.of(layer) for layer in network.layers if layer.name in eligible]
    known = [one[0] for one in found if one is not None]
    return sum(known) if len(known) == len(found) else None
