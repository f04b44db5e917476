"""Optuna's study, rebuilt in memory from the trials that one candidate may know.

They are told in the order of their numbers, so that the same search proposes and prunes the same on
one worker or many.
"""

from collections.abc import Iterator, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from search.grid import is_drawable
from search.limits import excesses
from search.plan import PlannedTrial, is_known_to, last_known
from search.spec import LearnerSettings, Objective, SearchSpec
from search.trial import FinishedTrial

STARTUP = 3  # candidates that are known before the sampler models and the pruner compares

_STATES = {"COMPLETE": OptunaState.COMPLETE, "PRUNED": OptunaState.PRUNED}


def known_candidates(
    spec: SearchSpec, planned: PlannedTrial, history: Sequence[FinishedTrial]
) -> list[FinishedTrial]:
    """Return the candidates that `planned` may be made from, in the order of their numbers."""
    last = last_known(planned, spec)
    known = [
        trial
        for trial in history
        if is_known_to(trial.planned, planned) and trial.planned.number <= last
    ]
    return sorted(known, key=lambda trial: trial.planned.number)


def empty_study(
    sampler: BaseSampler, pruner: BasePruner | None = None, *, objectives: int = 1
) -> optuna.Study:
    """Make a study; its name is fixed, for Hyperband shares candidates out by it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        sampler=sampler,
        pruner=pruner or NopPruner(),
        study_name="candidates",
        directions=["minimize"] * objectives,
    )


def tellable(
    known: Sequence[FinishedTrial], spec: SearchSpec
) -> Iterator[tuple[FinishedTrial, LearnerSettings, OptunaState]]:
    """Yield the trials that a study may be told: ended by themselves, inside the space."""
    for trial in known:
        state, settings = _STATES.get(trial.state), trial.settings
        if state is None or settings is None or not is_drawable(settings, spec):
            continue
        if state == OptunaState.PRUNED or trial.validation_loss is not None:
            yield trial, settings, state


def tell(
    study: optuna.Study,
    known: Sequence[FinishedTrial],
    spec: SearchSpec,
    *,
    objectives: Sequence[Objective] | None = None,
    first_step: int = 0,
) -> None:
    """Add the trials as they ended, with their curves from `first_step` on.

    What they are told by are the search's objectives, or those given.
    """
    drawn = distributions(spec)
    exceeding = constraints(known, spec)
    for trial, settings, state in tellable(known, spec):
        values = reached(trial, objectives or spec.objectives)
        if values is None and state == OptunaState.COMPLETE:
            continue
        study.add_trial(
            create_trial(
                state=state,
                params=settings.model_dump(include=set(drawn)),
                distributions=drawn,
                values=values,
                intermediate_values={step: v for step, v in trial.curve if step >= first_step},
                constraints=exceeding.get(trial.planned.number),
            )
        )


def reached(trial: FinishedTrial, objectives: Sequence[Objective]) -> list[float] | None:
    """Return what a trial came to in each objective, or None where one was not measured."""
    measures = dict(trial.metrics) | {
        "validation_loss": trial.validation_loss,
        "latency": trial.metrics.get("latency_ratio"),
    }
    values = [value for name in objectives if (value := measures.get(name)) is not None]
    return values if len(values) == len(objectives) else None


def constraints(known: Sequence[FinishedTrial], spec: SearchSpec) -> dict[int, dict[str, float]]:
    """Say by how much each complete trial exceeds each ceiling, the same ceilings for all.

    The budget is one where anybody exceeded it: a sampler that models what never varies is misled.
    """
    found = {
        trial.planned.number: excesses(spec.limits, trial.metrics)
        for trial in known
        if trial.state == "COMPLETE"
    }
    names = {name for name, ceiling in spec.limits if ceiling is not None}
    if any(one.get("cost", 0) > 0 for one in found.values()):
        names.add("cost")
    return {
        number: {name: one.get(name, 0.0) for name in sorted(names)}
        for number, one in found.items()
    }


def replay(study: optuna.Study, known: Sequence[FinishedTrial], spec: SearchSpec) -> None:
    """Let the sampler meet the trials again as if it had proposed them.

    So a genetic sampler counts its generations as it did when they were made.
    """
    drawn = distributions(spec)
    exceeding = constraints(known, spec)
    for ended, settings, state in tellable(known, spec):
        values = reached(ended, spec.objectives) if state == OptunaState.COMPLETE else None
        if values is None and state == OptunaState.COMPLETE:
            continue
        study.enqueue_trial(settings.model_dump(include=set(drawn)))
        trial = study.ask(drawn)
        _ = trial.relative_params  # asking for what is given does not ask the sampler: this does
        for step, value in () if spec.draws_budget else ended.curve:
            trial.report(value, step)
        for name, value in exceeding.get(ended.planned.number, {}).items():
            trial.set_constraint(name, value)
        study.tell(trial, values, state=state)


def distributions(spec: SearchSpec) -> dict[str, BaseDistribution]:
    """Say what is drawn from where."""
    space = spec.space
    drawn: dict[str, BaseDistribution] = {
        "start": CategoricalDistribution(space.starts),
        "group": CategoricalDistribution(space.groups),
    }
    for name, interval in spec.drawn.items():
        drawn[name] = FloatDistribution(interval.low, interval.high, log=interval.low > 0)
    if spec.draws_budget:
        drawn["share"] = FloatDistribution(spec.shares.low, spec.shares.high, log=True)
    return drawn
