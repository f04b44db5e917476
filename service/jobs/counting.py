"""How much there is of what, over all processes: for those who watch an installation."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, final

from sqlalchemy import ColumnElement, event, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from search.plan import ENDED
from service.db.queries import add
from service.db.tables import CounterRow, DeliveryRow, SearchRow, TrialRow, WebhookRow
from service.jobs.workers import living_workers
from service.lifecycle import CLAIMABLE_SEARCH_STATES, SEARCH_STATES, TRIAL_STATES

ENDED_TRIAL_STATES = tuple(state for state in TRIAL_STATES if state in ENDED)
LIVE_TRIAL_STATES = tuple(state for state in TRIAL_STATES if state not in ENDED)
# Under this key a session knows what is yet to be counted.
COUNTED = "matnas_counted"


@final
@dataclass(frozen=True, slots=True)
class Census:
    """What is counted anew at every look: few rows, whatever has happened before.

    `queued` are the trials that wait for nothing but a worker, the first of them `oldest_seconds`.
    """

    searches: Mapping[str, int]
    live_trials: Mapping[str, int]
    queued: int
    oldest_seconds: float
    workers: int
    counters: Mapping[str, int]
    deliveries: int
    disabled_webhooks: int


def count(session: Session, name: str) -> None:
    """Count one more; of what happens often, its row would be what all wait for.

    It is done last and in one order, so that nobody who holds a counter waits for anything else.
    """
    if COUNTED not in session.info:
        session.info[COUNTED] = Counter[str]()
        event.listen(session, "before_commit", _add_up, once=True)
    session.info[COUNTED][name] += 1


def census(session: Session, *, now: datetime, fresh: timedelta) -> Census:
    """Count what an installation is doing; a worker counts if it was heard of within `fresh`."""
    queued, oldest = session.execute(
        select(func.count(), func.min(TrialRow.ready_at))
        .select_from(TrialRow)
        .join(SearchRow, SearchRow.id == TrialRow.search_id)
        .where(TrialRow.state == "WAITING", TrialRow.ready_at.is_not(None))
        .where(SearchRow.state.in_(CLAIMABLE_SEARCH_STATES))
    ).one()
    return Census(
        searches=_by_state(session, SearchRow.state, SEARCH_STATES),
        live_trials=_by_state(session, TrialRow.state, LIVE_TRIAL_STATES),
        queued=queued,
        oldest_seconds=0.0 if oldest is None else max(0.0, (now - oldest).total_seconds()),
        workers=living_workers(session, now=now, within=fresh),
        counters={row.name: row.value for row in session.scalars(select(CounterRow))},
        deliveries=_number(session, DeliveryRow.state == "WAITING"),
        disabled_webhooks=_number(session, WebhookRow.enabled.is_(False)),
    )


def ended_trials(session: Session) -> Mapping[str, int]:
    """Count every trial that has ended, from an index alone: of those there may be millions."""
    return _by_state(session, TrialRow.state, ENDED_TRIAL_STATES)


def _add_up(session: Session) -> None:
    for name, times in sorted(session.info.pop(COUNTED).items()):
        add(session, name, times)


def _number(session: Session, condition: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).where(condition)) or 0


def _by_state(
    session: Session, column: InstrumentedAttribute[str], states: tuple[Any, ...]
) -> Mapping[str, int]:
    counted = select(column, func.count()).where(column.in_(states)).group_by(column)
    rows = session.execute(counted)
    found: dict[str, int] = {state: number for state, number in rows}  # noqa: C416
    return {state: found.get(state, 0) for state in states}
