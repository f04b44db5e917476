"""How far searches have come, counted by the database: few rows, however many trials they have."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, final

from sqlalchemy import ColumnElement, ScalarSelect, func, select

from search.plan import ENDED, TrialKind, TrialState
from service.db.queries import JsonRows, moment_in_json
from service.db.tables import SearchRow, TrialRow

Rows = Sequence[Sequence[Any]] | None


@final
@dataclass(frozen=True, slots=True)
class Counted:
    """Trials of one kind in one state, and how long they ran, all together."""

    kind: TrialKind
    state: TrialState
    number: int
    seconds: float

    @property
    def ended(self) -> bool:
        """Whether nothing more can happen to them."""
        return self.state in ENDED


@final
@dataclass(frozen=True, slots=True)
class Begun:
    """A trial that runs, or waits to go on."""

    kind: TrialKind
    state: TrialState
    number: int
    name: str
    phase: str | None
    unit: str | None
    done: int | None
    total: int | None
    begun_at: datetime | None
    ran_seconds: float


@final
@dataclass(frozen=True, slots=True)
class Tally:
    """The trials of one search: all are counted, and those that have begun are told of."""

    counted: Sequence[Counted]
    begun: Sequence[Begun]


def tally_of(counted: Rows, running: Rows, resting: Rows) -> Tally:
    """Read what the columns TALLY have found."""
    begun = sorted([*(running or ()), *(resting or ())], key=itemgetter(2))
    return Tally(
        [Counted(*values) for values in counted or ()],
        [Begun(*[*values, moment_in_json(at), seconds]) for *values, at, seconds in begun],
    )


def _rows(columns: Iterable[Any], *conditions: ColumnElement[bool]) -> ScalarSelect[Any]:
    return select(JsonRows(*columns)).where(*conditions).correlate(SearchRow).scalar_subquery()


def _columns() -> tuple[ScalarSelect[Any], ...]:
    of_search = TrialRow.search_id == SearchRow.id
    grouped = (TrialRow.kind, TrialRow.state)
    groups = (
        select(*grouped, func.count(), func.sum(TrialRow.ran_seconds))
        .where(of_search)
        .group_by(*grouped)
        .correlate(SearchRow)
        .subquery()
    )
    columns = (
        *(TrialRow.kind, TrialRow.state, TrialRow.number, TrialRow.name, TrialRow.phase),
        *(TrialRow.unit, TrialRow.done, TrialRow.total, TrialRow.begun_at, TrialRow.ran_seconds),
    )
    # Apart, for each is a stretch of the index; most that wait have not run.
    has_run = (TrialRow.state.in_(("WAITING", "LOST")), TrialRow.ran_seconds > 0)
    return (
        _rows(groups.c),
        _rows(columns, of_search, TrialRow.state == "RUNNING"),
        _rows(columns, of_search, *has_run),
    )


# Beside a SearchRow: its trials, counted from an index alone, and those that have begun.
TALLY = _, RUNNING, _ = _columns()
