"""Searches and trials that pass a filter, in an order, a page at a time."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from service.db.tables import SearchRow, TagRow, TrialRow
from service.jobs.keyset import Order, Value
from service.jobs.reading import get_searches, search_row, trial_views
from service.jobs.views import SearchFilter, SearchPage, TrialFilter, TrialPage

SearchSort = Literal[
    "-created_at",
    "created_at",
    "-priority",
    "priority",
    "name",
    "-name",
    "best_loss",
    "-best_loss",
]
TrialSort = Literal[
    "number",
    "-number",
    "validation_loss",
    "-validation_loss",
    "cost",
    "-cost",
    "latency_ratio",
    "-latency_ratio",
    "started_at",
    "-started_at",
]
NULLABLE = frozenset(
    {"name", "best_loss", "validation_loss", "cost", "latency_ratio", "started_at"}
)


def list_searches(
    session: Session,
    wanted: SearchFilter,
    *,
    now: datetime,
    cursor: str | None = None,
    limit: int = 50,
    sort: SearchSort = "-created_at",
) -> SearchPage:
    """Searches that pass the filter, newest first unless told."""
    statement = select(SearchRow.id).where(*_searches(wanted))
    page, following = SEARCH_ORDERS[sort].page(session, statement, cursor=cursor, limit=limit)
    ids = [row[0] for row in page]
    views = {view.id: view for view in get_searches(session, ids, now=now)}
    return SearchPage(tuple(views[search_id] for search_id in ids), following)


def page_of_trials(
    session: Session,
    search_id: str,
    wanted: TrialFilter,
    *,
    now: datetime,
    cursor: str | None = None,
    limit: int = 100,
    sort: TrialSort = "number",
) -> TrialPage:
    """The trials of a search that pass the filter, by number unless told."""
    search_row(session, search_id)
    statement = select(TrialRow).where(TrialRow.search_id == search_id, *_trials(wanted))
    page, following = TRIAL_ORDERS[sort].page(session, statement, cursor=cursor, limit=limit)
    return TrialPage(tuple(trial_views(session, [row[0] for row in page], now)), following)


def _searches(wanted: SearchFilter) -> list[ColumnElement[bool]]:
    conditions = _equal(
        (SearchRow.state, wanted.state),
        (SearchRow.model, wanted.model),
        (SearchRow.dataset, wanted.dataset),
        (SearchRow.name, wanted.name),
    )
    if wanted.tag is not None:
        tagged = select(TagRow.search_id).where(TagRow.tag == wanted.tag)
        conditions.append(SearchRow.id.in_(tagged))
    if wanted.created_after is not None:
        conditions.append(SearchRow.created_at > wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(SearchRow.created_at < wanted.created_before)
    return conditions + _between(SearchRow.best_loss, wanted.loss_from, wanted.loss_to)


def _trials(wanted: TrialFilter) -> list[ColumnElement[bool]]:
    return [
        *_equal(
            (TrialRow.state, wanted.state),
            (TrialRow.kind, wanted.kind),
            (TrialRow.owner, wanted.worker),
        ),
        *_between(TrialRow.loss, wanted.loss_from, wanted.loss_to),
        *_between(TrialRow.cost, wanted.cost_from, wanted.cost_to),
    ]


def _equal(*pairs: tuple[Any, str | None]) -> list[ColumnElement[bool]]:
    return [column == value for column, value in pairs if value is not None]


def _between(column: Any, low: float | None, high: float | None) -> list[ColumnElement[bool]]:
    """What has no value lies in no range."""
    return [
        *([] if low is None else [column >= low]),
        *([] if high is None else [column <= high]),
    ]


def _orders(
    sorts: tuple[str, ...],
    values: Mapping[str, tuple[Any, type[Value]]],
    unique: Any,
    unique_kind: type[Value],
) -> Mapping[str, Order]:
    return MappingProxyType(
        {
            sort: Order(
                sort,
                *values[name],
                unique,
                unique_kind,
                descending=sort.startswith("-"),
                nullable=name in NULLABLE,
            )
            for sort in sorts
            for name in [sort.lstrip("-")]
        }
    )


SEARCH_ORDERS = _orders(
    get_args(SearchSort),
    {
        "created_at": (SearchRow.created_at, datetime),
        "priority": (SearchRow.priority, int),
        "name": (SearchRow.name, str),
        "best_loss": (SearchRow.best_loss, float),
    },
    SearchRow.id,
    str,
)
TRIAL_ORDERS = _orders(
    get_args(TrialSort),
    {
        "number": (TrialRow.number, int),
        "validation_loss": (TrialRow.loss, float),
        "cost": (TrialRow.cost, int),
        "latency_ratio": (TrialRow.latency_ratio, float),
        "started_at": (TrialRow.started_at, datetime),
    },
    TrialRow.number,
    int,
)
