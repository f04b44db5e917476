"""Which trials a search consists of, and when each may start: pure arithmetic over their rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from search.spec import BaselineName, SearchSpec

TrialKind = Literal["reference", "baseline", "candidate", "measurement"]
TrialState = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAILED", "CANCELLED", "LOST"]
ENDED: frozenset[TrialState] = frozenset({"COMPLETE", "PRUNED", "FAILED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One trial of a search: `number` orders them, `repeat` counts the re-runs with other seeds."""

    number: int
    kind: TrialKind
    family: BaselineName | None = None
    repeat: int = 0

    @property
    def name(self) -> str:
        """What a table calls it."""
        suffix = f" (repeat {self.repeat})" if self.repeat else ""
        match self.kind:
            case "reference" | "measurement":
                return self.kind
            case "baseline":
                return f"{self.family}{suffix}"
            case "candidate":
                return f"winner{suffix}" if self.repeat else f"candidate {self.number}"
            case _:
                assert_never(self.kind)


def planned_trials(spec: SearchSpec) -> tuple[PlannedTrial, ...]:
    """Reference, baselines, candidates, their repeats, and the measurement of what was exported."""
    shapes: list[tuple[TrialKind, BaselineName | None, int]] = [("reference", None, 0)]
    baselines = spec.space.baselines
    # One matrix has no width to shrink, and a narrower network has no layer as a rule wants it.
    if spec.dataset is None or spec.layers.rules:
        baselines = tuple(name for name in baselines if name != "dense_shrunk")
    shapes += [("baseline", name, 0) for name in baselines]
    shapes += [("candidate", None, 0)] * spec.compute.trials
    for repeat in range(1, spec.repeats):
        shapes += [("baseline", name, repeat) for name in baselines]
        if spec.compute.trials:
            shapes.append(("candidate", None, repeat))
    shapes.append(("measurement", None, 0))
    return tuple(
        PlannedTrial(number, kind, family, repeat)
        for number, (kind, family, repeat) in enumerate(shapes)
    )


def first_candidate(spec: SearchSpec) -> int:
    """Return the number of the first candidate, or of what comes in its place."""
    trials = planned_trials(spec)
    return next(t.number for t in trials if t.kind in ("candidate", "measurement"))


def startable(
    plan: Sequence[PlannedTrial], ended: Collection[int], spec: SearchSpec
) -> tuple[PlannedTrial, ...]:
    """Return the trials of a plan that have not ended and wait for nothing that has not.

    A proposal is made from exactly the candidates `parallel` or more before it, whoever finished
    first, so that one worker or many propose the same.
    """
    left = [trial for trial in plan if trial.number not in ended]
    proposed = [t.number for t in left if t.kind == "candidate" and not t.repeat]
    first_open = min(proposed, default=len(plan))

    def may_start(trial: PlannedTrial) -> bool:
        match trial.kind:
            case "reference":
                return True
            case "baseline":
                return plan[0].number in ended
            case "candidate":
                return plan[0].number in ended and last_known(trial, spec) < first_open
            case "measurement":
                return left == [trial]
            case _:
                assert_never(trial.kind)

    return tuple(trial for trial in left if may_start(trial))


def last_known(candidate: PlannedTrial, spec: SearchSpec) -> int:
    """Return the number up to which a candidate's proposal knows the candidates."""
    return candidate.number - (0 if candidate.repeat else spec.compute.parallel)


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
                if other.kind == "reference"
                or (other.kind == "candidate" and not other.repeat and other.number <= last)
            )
        case "measurement":
            return tuple(other for other in trials if other.number != trial.number)
        case _:
            assert_never(trial.kind)
