"""Which candidates end early, because those before them did better at the same step."""

import warnings
from collections.abc import Sequence
from typing import assert_never

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from optuna.samplers import RandomSampler
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from search.plan import PlannedTrial, first_candidate
from search.sampler import Sampler
from search.spec import SearchSpec
from search.study import STARTUP, empty_study, known_candidates, tell, tellable
from search.trial import FinishedTrial

Curve = Sequence[tuple[int, float]]


def should_prune(
    spec: SearchSpec, planned: PlannedTrial, history: Sequence[FinishedTrial], curve: Curve
) -> bool:
    """Whether a candidate does so much worse than those before it that it should end.

    The curve begins where the budget holds: before, a candidate looks good because it is too large.
    Under budgets that are drawn nobody is, for their losses do not compare.
    """
    if planned.repeat or planned.drawn or not curve or spec.sampler.pruner == "none":
        return False
    known = known_candidates(spec, planned, history)
    told = list(tellable(known, spec))
    if sum(state == OptunaState.COMPLETE for *_, state in told) < STARTUP:
        return False
    first_step = curve[0][0]
    with warnings.catch_warnings():
        # Wilcoxon's says that steps are left out that are not the best candidate's too.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = empty_study(RandomSampler(seed=0), _pruner(spec.sampler))
        if spec.sampler.pruner in ("successive_halving", "hyperband"):
            _replay(study, spec, planned, {t.planned.number: t for t, *_ in told}, first_step)
            return _followed(study.ask(), _by_rank(curve, first_step))
        tell(study, known, spec, objectives=("validation_loss",), first_step=first_step)
        trial = study.ask()
        for step, value in curve:
            trial.report(value, step)
        return bool(trial.should_prune())  # numpy's own truth has another type


def _replay(
    study: optuna.Study,
    spec: SearchSpec,
    planned: PlannedTrial,
    told: dict[int, FinishedTrial],
    first_step: int,
) -> None:
    """Let the pruner meet the trials again: it marks on each of them the rungs that it reached.

    Those that are not known hold a place, for Hyperband shares brackets out by place.
    """
    for number in range(first_candidate(spec, planned.budget_index), planned.number):
        ended = told.get(number)
        if ended is None:
            study.add_trial(create_trial(state=OptunaState.FAIL))
            continue
        trial = study.ask()
        _followed(trial, _by_rank(ended.curve, first_step))
        value, complete = ended.validation_loss, ended.state == "COMPLETE"
        state = OptunaState.COMPLETE if complete else OptunaState.PRUNED
        study.tell(trial, value if complete else None, state=state)


def _followed(trial: optuna.Trial, curve: Curve) -> bool:
    """Report a curve, asking after every value as a running trial does; return the last answer."""
    answer = False
    for step, value in curve:
        trial.report(value, step)
        answer = bool(trial.should_prune())
    return answer


def _by_rank(curve: Curve, first_step: int) -> Curve:
    """Count a curve's values from 1: a rung is a number of epochs under the budget."""
    return list(enumerate((value for step, value in curve if step >= first_step), start=1))


def _pruner(sampler: Sampler) -> BasePruner:  # noqa: PLR0911  (one for each)
    match sampler.pruner:
        case "median":
            return MedianPruner(n_startup_trials=STARTUP)
        case "percentile":
            return PercentilePruner(sampler.percentile or 25.0, n_startup_trials=STARTUP)
        case "patient":
            patience = 2 if sampler.patience is None else sampler.patience
            return PatientPruner(MedianPruner(n_startup_trials=STARTUP), patience=patience)
        case "successive_halving":
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=sampler.reduction or 3)
        case "hyperband":
            return HyperbandPruner(min_resource=1, reduction_factor=sampler.reduction or 3)
        case "wilcoxon":
            return WilcoxonPruner()
        case "none":
            return NopPruner()
        case _:
            assert_never(sampler.pruner)
