"""Which trials are the best so far, of those that keep to the budgets of their search."""

from collections.abc import Sequence
from typing import cast

from search.limits import exceeded
from search.plan import TrialKind
from search.spec import SearchSpec
from service.db.tables import SearchRow, TrialRow
from service.jobs.views import BestView

# The curve that proposals, pruning and the choice of the best go by.
OBJECTIVE = "validation_loss"


def bests_of(
    row: SearchRow, spec: SearchSpec, trials: Sequence[TrialRow]
) -> tuple[BestView | None, ...]:
    """The best so far under each budget."""
    kept = [trial for trial in trials if not exceeded(spec.limits, trial.metrics or {})]
    return tuple(
        _best([trial for trial in kept if _is_under(trial, index, spec)], budget)
        for index, budget in enumerate(spec.budget.costs(row.dense_cost))
    )


def best_of(bests: Sequence[BestView | None]) -> BestView | None:
    """The best of all budgets."""
    return min(filter(None, bests), key=lambda best: best.validation_loss, default=None)


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
