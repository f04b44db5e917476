"""How far searches have come, counted by the database: few rows, however many trials they have."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast, final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from search.plan import ENDED, TrialKind, TrialState
from service.db.tables import TrialRow


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

    counted: list[Counted] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)


def tallies(session: Session, search_ids: Collection[str]) -> Mapping[str, Tally]:
    """Count the trials of each search, from an index alone."""
    found = {search_id: Tally() for search_id in search_ids}
    grouped = (TrialRow.search_id, TrialRow.state, TrialRow.kind)
    counted = (
        select(*grouped, func.count(), func.sum(TrialRow.ran_seconds))
        .where(TrialRow.search_id.in_(search_ids))
        .group_by(*grouped)
    )
    for search_id, state, kind, number, seconds in session.execute(counted):
        told = Counted(cast("TrialKind", kind), cast("TrialState", state), number, seconds)
        found[search_id].counted.append(told)
    live = [
        search_id
        for search_id, tally in found.items()
        if not all(counted.ended for counted in tally.counted)
    ]
    if live:
        for search_id, *values in _begun(session, live):
            found[search_id].begun.append(Begun(*values))
    return found


def _begun(session: Session, search_ids: Sequence[str]) -> Sequence[Any]:
    columns = select(
        TrialRow.search_id,
        TrialRow.kind,
        TrialRow.state,
        TrialRow.number,
        TrialRow.name,
        TrialRow.phase,
        TrialRow.unit,
        TrialRow.done,
        TrialRow.total,
        TrialRow.begun_at,
        TrialRow.ran_seconds,
    ).where(TrialRow.search_id.in_(search_ids))
    # Apart, for each is a stretch of the index; most that wait have not run.
    runs = columns.where(TrialRow.state == "RUNNING")
    rests = columns.where(TrialRow.state.in_(("WAITING", "LOST")), TrialRow.ran_seconds > 0)
    return session.execute(runs.union_all(rests).order_by("number")).all()
