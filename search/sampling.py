"""The Optuna half: settings proposed, and candidates pruned, from what earlier trials told.

The study is rebuilt in memory from the trials that may be known, in the order of their numbers, so
that the same search proposes the same on one worker or many.
"""

from collections.abc import Sequence
from typing import assert_never

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from models.spec import Matrix
from search.plan import PlannedTrial, first_candidate, last_known
from search.spec import LearnerSettings, Sampler, SearchSpec, Space, StructuresName
from search.trial import FinishedTrial

TURNS: tuple[StructuresName, ...] = ("menu", "competing", "rectangles")  # of a single matrix
STARTUP = 3  # candidates that are known before the sampler models and the pruner compares


def propose(
    spec: SearchSpec, planned: PlannedTrial, history: Sequence[FinishedTrial]
) -> LearnerSettings | None:
    """Propose a candidate's settings; a repeat gets those of the best, None if there is no best."""
    found = _proposed(spec, planned, history)
    if found is None or planned.repeat or found.structures != "auto":
        return found
    turn = planned.number - first_candidate(spec)
    learned = not isinstance(spec.model, Matrix) or found.start not in ("answer", "output")
    chosen = "rectangles" if learned or found.metric == "uniform" else TURNS[turn % len(TURNS)]
    return found.model_copy(update={"structures": chosen})


def _proposed(
    spec: SearchSpec, planned: PlannedTrial, history: Sequence[FinishedTrial]
) -> LearnerSettings | None:
    known = known_candidates(spec, planned, history)
    if planned.repeat:
        return _best(known)
    if planned.number == first_candidate(spec):
        return spec.space.learner
    trial = _study(spec, planned, known).ask(_distributions(spec.space))
    return LearnerSettings.model_validate(spec.space.learner.model_dump() | trial.params)


def should_prune(
    spec: SearchSpec,
    planned: PlannedTrial,
    history: Sequence[FinishedTrial],
    curve: Sequence[tuple[int, float]],
) -> bool:
    """Whether a candidate does worse than the median of those before it did at the same step.

    The curve begins where the budget holds: before, a candidate looks good because it is too large.
    """
    if planned.repeat or not curve:
        return False
    known = known_candidates(spec, planned, history)
    study = _study(spec, planned, known, first_step=curve[0][0])
    trial = study.ask(_distributions(spec.space))
    for step, value in curve:
        trial.report(value, step)
    return bool(trial.should_prune())  # numpy's own truth has another type


def known_candidates(
    spec: SearchSpec, planned: PlannedTrial, history: Sequence[FinishedTrial]
) -> list[FinishedTrial]:
    """Return the candidates that `planned` may be made from, in the order of their numbers."""
    last = last_known(planned, spec)
    known = [
        trial
        for trial in history
        if trial.planned.kind == "candidate"
        and not trial.planned.repeat
        and trial.planned.number <= last
    ]
    return sorted(known, key=lambda trial: trial.planned.number)


def _best(known: Sequence[FinishedTrial]) -> LearnerSettings | None:
    losses = [
        (trial.validation_loss, trial.planned.number, trial.settings)
        for trial in known
        if trial.state == "COMPLETE" and trial.validation_loss is not None
    ]
    return min(losses, key=lambda row: row[:2])[2] if losses else None


def _study(
    spec: SearchSpec, planned: PlannedTrial, known: Sequence[FinishedTrial], *, first_step: int = 0
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=_sampler(spec.sampler, seed=(spec.seed * 10_007 + planned.number) % 2**32),
        pruner=_pruner(spec.sampler),
    )
    distributions = _distributions(spec.space)
    for trial in known:
        state = _OPTUNA_STATES.get(trial.state)
        if state is None or trial.settings is None or not _is_drawable(trial.settings, spec.space):
            continue
        study.add_trial(
            create_trial(
                state=state,
                params=trial.settings.model_dump(include=set(distributions)),
                distributions=distributions,
                value=trial.validation_loss,
                intermediate_values={step: v for step, v in trial.curve if step >= first_step},
            )
        )
    return study


_OPTUNA_STATES = {"COMPLETE": OptunaState.COMPLETE, "PRUNED": OptunaState.PRUNED}


def _sampler(sampler: Sampler, *, seed: int) -> BaseSampler:
    match sampler.name:
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=STARTUP)
        case "random":
            return RandomSampler(seed=seed)
        case _:
            assert_never(sampler.name)


def _pruner(sampler: Sampler) -> BasePruner:
    match sampler.pruner:
        case "median":
            return MedianPruner(n_startup_trials=STARTUP)
        case "none":
            return NopPruner()
        case _:
            assert_never(sampler.pruner)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    drawn: dict[str, BaseDistribution] = {
        "start": CategoricalDistribution(space.starts),
        "group": CategoricalDistribution(space.groups),
    }
    for name, interval in space.ranges.items():
        drawn[name] = FloatDistribution(interval.low, interval.high, log=interval.low > 0)
    return drawn


def _is_drawable(settings: LearnerSettings, space: Space) -> bool:
    """Whether the sampler could have proposed these settings: the given ones may lie outside."""
    values = settings.model_dump()
    inside = (i.low <= values[name] <= i.high for name, i in space.ranges.items())
    return settings.start in space.starts and settings.group in space.groups and all(inside)
