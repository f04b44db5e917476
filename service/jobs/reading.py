"""Questions about searches and trials, answered without touching the curves or the networks."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from models.cost import Quantity
from search.plan import TrialKind, TrialState
from search.spec import BaselineName, LearnerSettings, SearchSpec
from service.db.tables import EventRow, LatestRow, SearchRow, TrialRow
from service.errors import SearchNotFound, TrialNotFound
from service.jobs.best import best_of, bests_of
from service.jobs.estimate import progress_of, ran
from service.jobs.transitions import lock_search
from service.jobs.views import (
    EventView,
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
    return search_views(session, [search_row(session, search_id)], now)[0]


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


def search_views(session: Session, rows: Sequence[SearchRow], now: datetime) -> list[SearchView]:
    """Rows as others may see them, each with how far its trials have come."""
    trials: dict[str, list[TrialRow]] = {row.id: [] for row in rows}
    statement = select(TrialRow).where(TrialRow.search_id.in_(trials)).order_by(TrialRow.number)
    for trial in session.scalars(statement):
        trials[trial.search_id].append(trial)
    named = {row.warm_start["search_id"] for row in rows if row.warm_start is not None}
    there = set(session.scalars(select(SearchRow.id).where(SearchRow.id.in_(named))))
    return [_search_view(row, trials[row.id], there, now) for row in rows]


def _search_view(
    row: SearchRow, trials: Sequence[TrialRow], there: Collection[str], now: datetime
) -> SearchView:
    spec = SearchSpec.model_validate(row.spec)
    bests = bests_of(row, spec, trials)
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
        progress=progress_of(trials, spec, now=now),
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
