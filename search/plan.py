"""Which trials a search consists of, and when each may start: pure arithmetic over their rows."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from search.grid import grid_size
from search.spec import BaselineName, SearchSpec

TrialKind = Literal["reference", "baseline", "candidate", "measurement"]
TrialState = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAILED", "CANCELLED", "LOST"]
ENDED: frozenset[TrialState] = frozenset({"COMPLETE", "PRUNED", "FAILED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One trial of a search: `number` orders them, `repeat` counts the re-runs with other seeds.

    `budget_index` says which of the search's budgets holds for it, and `share` what that is of the
    dense cost, where there are several. The budget of a candidate may be `drawn` below that.
    """

    number: int
    kind: TrialKind
    family: BaselineName | None = None
    repeat: int = 0
    budget_index: int = 0
    share: float | None = None
    drawn: bool = False

    @property
    def group(self) -> int | None:
        """Name those that learn from each other: under one budget, or under drawn ones."""
        return None if self.drawn else self.budget_index

    @property
    def name(self) -> str:
        """What a table calls it."""
        suffix = "" if self.share is None else f" at {100 * self.share:.6g} %"
        suffix += f" (repeat {self.repeat})" if self.repeat else ""
        match self.kind:
            case "reference" | "measurement":
                return self.kind
            case "baseline":
                return f"{self.family}{suffix}"
            case "candidate":
                return f"{'winner' if self.repeat else f'candidate {self.number}'}{suffix}"
            case _:
                assert_never(self.kind)


def planned_trials(spec: SearchSpec) -> tuple[PlannedTrial, ...]:
    """Reference, baselines, candidates, their repeats, and the measurement of what was exported.

    Baselines come budget by budget, and so do candidates, unless their budgets are drawn.
    """
    baselines = spec.space.baselines
    # One matrix has no width to shrink, and a narrower network has no layer as a rule wants it.
    if spec.dataset is None or spec.layers.rules:
        baselines = tuple(name for name in baselines if name != "dense_shrunk")
    shares: tuple[float | None, ...] = spec.budget.ratios or (None,)
    numbers = itertools.count()

    def plan(
        kind: TrialKind, family: BaselineName | None = None, *, repeat: int = 0, budget: int = 0
    ) -> PlannedTrial:
        drawn = kind == "candidate" and spec.draws_budget
        owned = shares[budget] if kind in ("baseline", "candidate") else None
        named = None if drawn and not repeat else owned
        return PlannedTrial(next(numbers), kind, family, repeat, budget, named, drawn)

    budgets = range(len(shares))
    # A drawn budget is at most the highest.
    own = [shares.index(max(spec.budget.ratios or ()))] if spec.draws_budget else budgets
    trials = [plan("reference")]
    trials += [plan("baseline", name, budget=b) for b in budgets for name in baselines]
    trials += [plan("candidate", budget=b) for b in own for _ in range(candidates(spec))]
    for repeat in range(1, spec.repeats):
        for b in budgets:
            trials += [plan("baseline", name, repeat=repeat, budget=b) for name in baselines]
            if spec.compute.trials:
                trials.append(plan("candidate", repeat=repeat, budget=b))
    return (*trials, plan("measurement"))


def candidates(spec: SearchSpec) -> int:
    """Count each budget's candidates: as many as asked for, or as the grid has points."""
    trials = spec.compute.trials
    return min(trials, grid_size(spec)) if spec.sampler.name == "grid" else trials


def first_candidate(spec: SearchSpec, budget_index: int = 0) -> int:
    """Return the number of a budget's first candidate, or of what comes in its place."""
    trials = planned_trials(spec)
    first = next(t.number for t in trials if t.kind in ("candidate", "measurement"))
    return first + (0 if spec.draws_budget else budget_index * candidates(spec))


def startable(
    plan: Sequence[PlannedTrial], ended: Collection[int], spec: SearchSpec
) -> tuple[PlannedTrial, ...]:
    """Return the trials of a plan that have not ended and wait for nothing that has not.

    A proposal is made from exactly the candidates `parallel` or more before it, whoever finished
    first, so that one worker or many propose the same.
    """
    left = [trial for trial in plan if trial.number not in ended]
    first_open: dict[int | None, int] = {}
    for trial in left:
        if trial.kind == "candidate" and not trial.repeat:
            first_open.setdefault(trial.group, trial.number)

    def may_start(trial: PlannedTrial) -> bool:
        match trial.kind:
            case "reference":
                return True
            case "baseline":
                return plan[0].number in ended
            case "candidate":
                known = last_known(trial, spec)
                return plan[0].number in ended and known < first_open.get(trial.group, len(plan))
            case "measurement":
                return left == [trial]
            case _:
                assert_never(trial.kind)

    return tuple(trial for trial in left if may_start(trial))


def last_known(candidate: PlannedTrial, spec: SearchSpec) -> int:
    """Return the number up to which a candidate's proposal knows the candidates."""
    return candidate.number - (0 if candidate.repeat else spec.compute.parallel)


def is_known_to(other: PlannedTrial, candidate: PlannedTrial) -> bool:
    """Whether a candidate learns from the other at all: from first runs under its own budget."""
    return other.kind == "candidate" and not other.repeat and other.group == candidate.group


def prerequisites(
    trial: PlannedTrial, trials: Sequence[PlannedTrial], spec: SearchSpec
) -> tuple[PlannedTrial, ...]:
    """The trials that must have ended before `trial` may start."""
    match trial.kind:
        case "reference":
            return ()
        case "baseline":
            return tuple(other for other in trials if other.kind == "reference")
        case "candidate":
            last = last_known(trial, spec)
            return tuple(
                other
                for other in trials
                if other.kind == "reference" or (is_known_to(other, trial) and other.number <= last)
            )
        case "measurement":
            return tuple(other for other in trials if other.number != trial.number)
        case _:
            assert_never(trial.kind)
