"""What may start now, and what it may know: the rule of the plan, applied to the rows."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from search.plan import ENDED, PlannedTrial, planned_trials, startable
from search.spec import LearnerSettings, SearchSpec
from service.db.tables import PointRow, SearchRow, TrialRow
from service.jobs.best import OBJECTIVE
from service.jobs.reading import trial_state
from service.jobs.views import Curve, PastTrial


def ready(
    search: SearchRow, trials: Sequence[TrialRow], spec: SearchSpec, *, now: datetime
) -> list[TrialRow]:
    """The waiting trials of a search that may start; out of time, no new candidate may."""
    plan = planned_trials(spec)
    ended = {trial.number for trial in trials if trial.state in ENDED}
    may_start = {planned.number for planned in startable(plan, ended, spec)}
    exhausted = search.deadline_at is not None and search.deadline_at <= now
    return [
        trial
        for trial in trials
        if trial.state == "WAITING"
        and trial.number in may_start
        and not (exhausted and optional(trial))
    ]


def optional(trial: TrialRow) -> bool:
    """Whether the search can do without it when its time is over."""
    return trial.kind == "candidate" or trial.repeat > 0


def past_trials(
    session: Session, search_id: str, plan: Sequence[PlannedTrial], numbers: Collection[int]
) -> tuple[PastTrial, ...]:
    """The named trials in the order of their numbers, whoever ended first."""
    rows = session.scalars(
        select(TrialRow)
        .where(TrialRow.search_id == search_id, TrialRow.number.in_(numbers))
        .order_by(TrialRow.number)
    ).all()
    curves = _curves(session, [row.id for row in rows])
    return tuple(
        PastTrial(
            planned=plan[row.number],
            state=trial_state(row),
            attempt=row.attempt,
            settings=None if row.settings is None else LearnerSettings.model_validate(row.settings),
            validation_loss=(row.metrics or {}).get(OBJECTIVE),
            curve=curves.get(row.id, ()),
            metrics=row.metrics or {},
        )
        for row in rows
    )


def _curves(session: Session, trial_ids: Sequence[str]) -> dict[str, Curve]:
    rows = session.execute(
        select(PointRow.trial_id, PointRow.step, PointRow.value)
        .where(PointRow.trial_id.in_(trial_ids), PointRow.name == OBJECTIVE)
        .order_by(PointRow.trial_id, PointRow.step)
    )
    curves: dict[str, list[tuple[int, float | None]]] = {}
    for trial_id, step, value in rows:
        curves.setdefault(trial_id, []).append((step, value))
    return {trial_id: tuple(points) for trial_id, points in curves.items()}
