"""Questions about searches and trials, answered without touching the curves or the networks."""

import base64
import binascii
import json
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import cast

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.orm import Session

from models.cost import Quantity
from search.limits import exceeded
from search.plan import TrialKind, TrialState
from search.spec import BaselineName, LearnerSettings, SearchSpec
from service.db.tables import EventRow, LatestRow, SearchRow, TagRow, TrialRow
from service.errors import QueryRefused, SearchNotFound, TrialNotFound
from service.jobs.estimate import progress_of
from service.jobs.views import (
    BestView,
    EventView,
    SearchFilter,
    SearchPage,
    SearchView,
    TrialView,
    WarmStartView,
)
from service.lifecycle import Reason, SearchState

# The curve that proposals, pruning and the choice of the best go by.
OBJECTIVE = "validation_loss"


def get_search(session: Session, search_id: str, *, now: datetime) -> SearchView:
    """One search, or SearchNotFound."""
    row = session.get(SearchRow, search_id)
    if row is None:
        raise SearchNotFound(search_id)
    return _search_views(session, [row], now)[0]


def list_searches(
    session: Session,
    wanted: SearchFilter,
    *,
    now: datetime,
    cursor: str | None = None,
    limit: int = 50,
    oldest_first: bool = False,
) -> SearchPage:
    """Searches that pass the filter, newest first unless told, a page at a time."""
    moment, key = SearchRow.created_at, SearchRow.id
    order = (moment, key) if oldest_first else (moment.desc(), key.desc())
    statement = _filtered(wanted).order_by(*order)
    if cursor is not None:
        created_at, search_id = _read_cursor(cursor)
        later = or_(moment > created_at, and_(moment == created_at, key > search_id))
        sooner = or_(moment < created_at, and_(moment == created_at, key < search_id))
        statement = statement.where(later if oldest_first else sooner)
    rows = session.scalars(statement.limit(limit + 1)).all()
    page = rows[:limit]
    following = _cursor(page[-1]) if len(rows) > limit else None
    return SearchPage(tuple(_search_views(session, page, now)), following)


def list_trials(session: Session, search_id: str, *, now: datetime) -> tuple[TrialView, ...]:
    """Every trial of a search, in order."""
    if session.get(SearchRow, search_id) is None:
        raise SearchNotFound(search_id)
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
    if session.get(SearchRow, search_id) is None:
        raise SearchNotFound(search_id)
    rows = session.scalars(
        select(EventRow)
        .where(EventRow.search_id == search_id, EventRow.id > after)
        .order_by(EventRow.id)
        .limit(limit)
    )
    return tuple(_event_view(row) for row in rows)


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


def _search_views(session: Session, rows: Sequence[SearchRow], now: datetime) -> list[SearchView]:
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
    budgets = spec.budget.costs(row.dense_cost)
    kept = [trial for trial in trials if not exceeded(spec.limits, trial.metrics or {})]
    bests = tuple(
        _best([trial for trial in kept if _is_under(trial, index, spec)], budget)
        for index, budget in enumerate(budgets)
    )
    return SearchView(
        id=row.id,
        name=row.name,
        tags=spec.tags,
        spec=spec,
        state=cast("SearchState", row.state),
        reason=cast("Reason", row.reason),
        sentence=row.sentence,
        version=row.version,
        quantity=cast("Quantity", row.quantity),
        budget=row.budget,
        budgets=budgets,
        dense_cost=row.dense_cost,
        smallest_cost=row.smallest_cost or None,  # of a budget in time not before it is measured
        eligible=tuple(row.eligible),
        created_at=row.created_at,
        started_at=row.started_at,
        deadline_at=row.deadline_at,
        ended_at=row.ended_at,
        progress=progress_of(trials, spec, now=now),
        best=min(filter(None, bests), key=lambda best: best.validation_loss, default=None),
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


def _is_under(trial: TrialRow, index: int, spec: SearchSpec) -> bool:
    """Whether a trial may be a budget's best: it is of this one, or of a drawn one."""
    return trial.budget_index == index or (spec.draws_budget and trial.kind == "candidate")


def _best(trials: Sequence[TrialRow], budget: int) -> BestView | None:
    scored = [
        (loss, trial, trial.cost)
        for trial in trials
        if trial.state == "COMPLETE"
        and trial.cost is not None
        and trial.cost <= budget
        and (loss := (trial.metrics or {}).get(OBJECTIVE)) is not None
    ]
    if not scored:
        return None
    loss, trial, cost = min(scored, key=lambda found: (found[0], found[1].number))
    return BestView(trial.number, trial.name, cast("TrialKind", trial.kind), loss, cost, budget)


def _trial_view(row: TrialRow, latest: dict[str, float | None], now: datetime) -> TrialView:
    seconds = None
    if row.started_at is not None:
        seconds = ((row.ended_at or now) - row.started_at).total_seconds()
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


def _filtered(wanted: SearchFilter) -> Select[SearchRow]:
    conditions: list[ColumnElement[bool]] = []
    for column, value in (
        (SearchRow.state, wanted.state),
        (SearchRow.model, wanted.model),
        (SearchRow.dataset, wanted.dataset),
        (SearchRow.name, wanted.name),
    ):
        if value is not None:
            conditions.append(column == value)
    if wanted.tag is not None:
        tagged = select(TagRow.search_id).where(TagRow.tag == wanted.tag)
        conditions.append(SearchRow.id.in_(tagged))
    if wanted.created_after is not None:
        conditions.append(SearchRow.created_at > wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(SearchRow.created_at < wanted.created_before)
    return select(SearchRow).where(*conditions)


def _cursor(row: SearchRow) -> str:
    text = json.dumps([row.created_at.isoformat(), row.id])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    refused = QueryRefused("the cursor is not one of ours", field="cursor")
    try:
        moment, search_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        created_at = datetime.fromisoformat(moment).astimezone(UTC)
        known = re.fullmatch(r"\w+", search_id, re.ASCII)
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise refused from error
    if known is None:
        raise refused
    return created_at, known[0]
