"""Questions about searches and trials, answered without touching the curves or the networks."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.cost import Quantity
from search.plan import TrialKind, TrialState
from search.spec import BaselineName, LearnerSettings, SearchSpec
from service.db.tables import EventRow, LatestRow, SearchRow, TrialRow
from service.errors import SearchNotFound, TrialNotFound
from service.jobs.best import best_of, noted_bests
from service.jobs.estimate import progress_of, ran
from service.jobs.tally import RUNNING, TALLY, Tally, tally_of
from service.jobs.transitions import lock_search
from service.jobs.views import (
    BestView,
    EventView,
    Pulse,
    SearchView,
    TrialView,
    WarmStartView,
)
from service.lifecycle import Reason, SearchState


def get_search(
    session: Session, search_id: str, *, now: datetime, locked: bool = False
) -> SearchView:
    """One search, or SearchNotFound; `locked`, it stays as it is for this transaction."""
    if locked:
        lock_search(session, search_id)
    found = get_searches(session, [search_id], now=now)
    if not found:
        raise SearchNotFound(search_id)
    return found[0]


def get_searches(
    session: Session, search_ids: Collection[str], *, now: datetime
) -> list[SearchView]:
    """Those of the searches that are there, in no order."""
    wanted = select(SearchRow, *TALLY).where(SearchRow.id.in_(search_ids))
    found = [(row, tally_of(*columns)) for row, *columns in session.execute(wanted)]
    specs = [(row, SearchSpec.model_validate(row.spec)) for row, _ in found]
    bests = noted_bests(session, specs)
    there = _there(session, [row for row, _ in found])
    return [
        _search_view(row, spec, tally, bests[row.id], there, now)
        for (row, tally), (_, spec) in zip(found, specs, strict=True)
    ]


def list_trials(session: Session, search_id: str, *, now: datetime) -> tuple[TrialView, ...]:
    """Every trial of a search, in order."""
    search_row(session, search_id)
    rows = session.scalars(
        select(TrialRow).where(TrialRow.search_id == search_id).order_by(TrialRow.number)
    ).all()
    return tuple(trial_views(session, rows, now))


def get_trial(session: Session, search_id: str, number: int, *, now: datetime) -> TrialView:
    """One trial, or TrialNotFound."""
    return trial_views(session, [trial_row(session, search_id, number)], now)[0]


def events(
    session: Session, search_id: str, *, after: int = 0, limit: int = 500
) -> tuple[EventView, ...]:
    """What became of a search and its trials since the event `after`, in order."""
    search_row(session, search_id)
    rows = session.scalars(
        select(EventRow)
        .where(EventRow.search_id == search_id, EventRow.id > after)
        .order_by(EventRow.id)
        .limit(limit)
    )
    return tuple(_event_view(row) for row in rows)


def pulses(session: Session, search_ids: Collection[str]) -> Mapping[str, Pulse]:
    """Tell cheaply of which searches there is anything new."""
    newest = (
        select(func.max(EventRow.id)).where(EventRow.search_id == SearchRow.id).scalar_subquery()
    )
    columns = select(SearchRow.id, SearchRow.version, newest, RUNNING)
    found = session.execute(columns.where(SearchRow.id.in_(search_ids)))
    return {
        search_id: Pulse(last or 0, f"{version} {last} {running}")
        for search_id, version, last, running in found
    }


def search_row(session: Session, search_id: str) -> SearchRow:
    """The row of one search, for the other questions."""
    row = session.get(SearchRow, search_id)
    if row is None:
        raise SearchNotFound(search_id)
    return row


def trial_row(session: Session, search_id: str, number: int) -> TrialRow:
    """The row of one trial, for the other questions."""
    row = session.scalars(
        select(TrialRow).where(TrialRow.search_id == search_id, TrialRow.number == number)
    ).one_or_none()
    if row is None:
        raise TrialNotFound(f"{search_id}-{number}")
    return row


def trial_state(row: TrialRow) -> TrialState:
    """The state as the plan knows it."""
    return cast("TrialState", row.state)


def trial_views(session: Session, rows: Sequence[TrialRow], now: datetime) -> list[TrialView]:
    """Rows as others may see them, each with the newest value of its curves."""
    latest: dict[str, dict[str, float | None]] = {row.id: {} for row in rows}
    for point in session.scalars(select(LatestRow).where(LatestRow.trial_id.in_(latest))):
        latest[point.trial_id][point.name] = point.value
    return [_trial_view(row, latest[row.id], now) for row in rows]


def _there(session: Session, rows: Sequence[SearchRow]) -> Collection[str]:
    """Which of the searches are still there that others were told of."""
    named = {row.warm_start["search_id"] for row in rows if row.warm_start is not None}
    if not named:
        return ()
    return set(session.scalars(select(SearchRow.id).where(SearchRow.id.in_(named))))


def _search_view(
    row: SearchRow,
    spec: SearchSpec,
    tally: Tally,
    bests: tuple[BestView | None, ...],
    there: Collection[str],
    now: datetime,
) -> SearchView:
    return SearchView(
        id=row.id,
        name=row.name,
        tags=spec.tags,
        spec=spec,
        state=cast("SearchState", row.state),
        reason=cast("Reason", row.reason),
        sentence=row.sentence,
        version=row.version,
        priority=row.priority,
        quantity=cast("Quantity", row.quantity),
        budget=row.budget,
        budgets=spec.budget.costs(row.dense_cost),
        dense_cost=row.dense_cost,
        smallest_cost=row.smallest_cost or None,  # of a budget in time not before it is measured
        eligible=tuple(row.eligible),
        created_at=row.created_at,
        started_at=row.started_at,
        deadline_at=row.deadline_at,
        ended_at=row.ended_at,
        progress=progress_of(tally, spec, now=now),
        best=best_of(bests),
        bests=bests,
        warm_start=_warm_start(row, there),
    )


def _warm_start(row: SearchRow, there: Collection[str]) -> WarmStartView | None:
    if row.warm_start is None:
        return None
    search_id, told, outside = (row.warm_start[key] for key in ("search_id", "told", "outside"))
    sentence = f"the sampler was told of {told} candidates of {search_id}"
    if outside:
        sentence += f"; {outside} more lie outside of this space"
    if search_id not in there:
        sentence += "; that search has been deleted since, which changes nothing here"
    return WarmStartView(search_id, told, outside, sentence)


def _trial_view(row: TrialRow, latest: dict[str, float | None], now: datetime) -> TrialView:
    seconds = None
    if row.started_at is not None:
        seconds = ran(row, now)
    return TrialView(
        id=row.id,
        search_id=row.search_id,
        number=row.number,
        kind=cast("TrialKind", row.kind),
        family=cast("BaselineName | None", row.family),
        repeat=row.repeat,
        budget_index=row.budget_index,
        name=row.name,
        state=trial_state(row),
        reason=cast("Reason", row.reason),
        sentence=row.sentence,
        attempt=row.attempt,
        losses=row.losses,
        owner=row.owner,
        settings=None if row.settings is None else LearnerSettings.model_validate(row.settings),
        metrics=row.metrics or {},
        latest=latest,
        cost=row.cost,
        latency_ratio=row.latency_ratio,
        phase=row.phase,
        done=row.done,
        total=row.total,
        unit=row.unit,
        started_at=row.started_at,
        ended_at=row.ended_at,
        seconds=seconds,
    )


def _event_view(row: EventRow) -> EventView:
    return EventView(
        id=row.id,
        search_id=row.search_id,
        trial_number=row.trial_number,
        attempt=row.attempt,
        kind=row.kind,
        state=row.state,
        reason=cast("Reason", row.reason),
        sentence=row.sentence,
        actor=row.actor,
        request_id=row.request_id,
        at=row.at,
    )
