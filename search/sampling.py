"""The Optuna half: settings proposed for a candidate from what earlier ones told."""

import math
from collections.abc import Sequence
from typing import assert_never

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from models.spec import Matrix
from search.grid import first_settings, grid_settings
from search.limits import exceeded
from search.plan import PlannedTrial, first_candidate
from search.spec import LearnerSettings, SearchSpec, StructuresName
from search.study import STARTUP, distributions, empty_study, known_candidates, replay, tell
from search.trial import FinishedTrial
from search.warm import EarlierCandidate, as_told

TURNS: tuple[StructuresName, ...] = ("menu", "competing", "rectangles")  # of a single matrix


def propose(
    spec: SearchSpec,
    planned: PlannedTrial,
    history: Sequence[FinishedTrial],
    earlier: Sequence[EarlierCandidate] = (),
) -> LearnerSettings | None:
    """Propose a candidate's settings; a repeat gets those of the best, None if there is no best.

    `earlier` are the candidates of the search that this one was warm-started from.
    """
    known = known_candidates(spec, planned, history)
    if planned.repeat:
        return _best(known, spec, planned)
    position = planned.number - first_candidate(spec, planned.budget_index)
    found = _proposed(spec, planned, known, earlier, position=position)
    if spec.budget.quantity == "latency":
        by_position = "rectangles" if position else "menu"
        chosen = by_position if found.structures == "auto" else found.structures
        return found.model_copy(update={"structures": chosen, "pieces": "ranks", "gaudi": False})
    if found.structures != "auto":
        return found
    learned = not isinstance(spec.model, Matrix) or found.start not in ("answer", "output")
    by_turns = TURNS[position % len(TURNS)]
    chosen = "rectangles" if learned or found.metric == "uniform" else by_turns
    return found.model_copy(update={"structures": chosen})


def _proposed(
    spec: SearchSpec,
    planned: PlannedTrial,
    known: Sequence[FinishedTrial],
    earlier: Sequence[EarlierCandidate],
    *,
    position: int,
) -> LearnerSettings:
    if position == 0:
        return first_settings(spec)
    if spec.sampler.name == "grid":
        return grid_settings(spec)[position]
    told = [*as_told(earlier, planned.budget_index, known), *known]
    seed = (spec.seed * 10_007 + planned.number) % 2**32
    study = empty_study(_sampler(spec, seed=seed), objectives=len(spec.objectives))
    if spec.sampler.name == "nsga2":
        replay(study, told, spec)
    else:
        tell(study, told, spec)
    trial = study.ask(distributions(spec))
    return LearnerSettings.model_validate(spec.space.learner.model_dump() | trial.params)


def _best(
    known: Sequence[FinishedTrial], spec: SearchSpec, planned: PlannedTrial
) -> LearnerSettings | None:
    losses = [
        (trial.validation_loss, trial.planned.number, trial.settings)
        for trial in known
        if trial.state == "COMPLETE"
        and trial.validation_loss is not None
        and not exceeded(spec.limits, trial.metrics)
        and (not planned.drawn or _share(trial) <= (planned.share or 1.0))
    ]
    return min(losses, key=lambda row: row[:2])[2] if losses else None


def _share(trial: FinishedTrial) -> float:
    return 1.0 if trial.settings is None else trial.settings.share or 1.0


def _sampler(spec: SearchSpec, *, seed: int) -> BaseSampler:
    match spec.sampler.name:
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=STARTUP)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed, population_size=population(spec.compute.trials))
        case "random":
            return RandomSampler(seed=seed)
        case "grid":
            raise AssertionError("a grid is listed, not sampled")
        case _:
            assert_never(spec.sampler.name)


def population(trials: int) -> int:
    """Share a search's candidates out so that there are about half as many generations as heads.

    Optuna's own 50 would leave most searches in their first generation, which is random.
    """
    return max(4, min(50, 2 * math.isqrt(trials)))
