"""Which trials are the best so far, of those that keep to the budgets of their search."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session, load_only

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


def note_bests(row: SearchRow, bests: Sequence[BestView | None]) -> None:
    """Keep the bests in the row of their search, so that no list of searches reads trials."""
    row.bests = [None if best is None else asdict(best) for best in bests]
    best = best_of(bests)
    row.best_loss = None if best is None else best.validation_loss


def noted_bests(
    session: Session, rows: Sequence[tuple[SearchRow, SearchSpec]]
) -> Mapping[str, tuple[BestView | None, ...]]:
    """The bests of each search, looked up for those of which no row keeps them yet."""
    known = {
        row.id: tuple(None if best is None else BestView(**best) for best in row.bests)
        for row, _ in rows
        if row.bests is not None
    }
    unknown = {row.id: list[TrialRow]() for row, _ in rows if row.bests is None}
    if unknown:
        for trial in session.scalars(_scored(unknown)):
            unknown[trial.search_id].append(trial)
    return known | {
        row.id: bests_of(row, spec, unknown[row.id]) for row, spec in rows if row.id in unknown
    }


def best_of(bests: Sequence[BestView | None]) -> BestView | None:
    """The best of all budgets."""
    return min(filter(None, bests), key=lambda best: best.validation_loss, default=None)


def _scored(search_ids: Collection[str]) -> Any:
    needed = (TrialRow.search_id, TrialRow.number, TrialRow.name, TrialRow.kind, TrialRow.state)
    return (
        select(TrialRow)
        .where(TrialRow.search_id.in_(search_ids), TrialRow.state == "COMPLETE")
        .options(load_only(*needed, TrialRow.budget_index, TrialRow.cost, TrialRow.metrics))
    )


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
