"""Which trials a search consists of, and when each may start: pure arithmetic over their rows."""

from collections.abc import Sequence
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
    if spec.dataset is None:  # one matrix has no width to shrink
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


def may_start(trial: PlannedTrial, ended: Sequence[PlannedTrial], spec: SearchSpec) -> bool:
    """Whether everything that `trial` is made from has ended.

    A proposal is made from exactly the candidates `parallel` or more before it, whoever finished
    first, so that one worker or many propose the same.
    """
    if trial.kind == "reference":
        return True
    done = {other.number for other in ended}
    return all(other.number in done for other in prerequisites(trial, planned_trials(spec), spec))


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
            last = trial.number if trial.repeat else trial.number - spec.compute.parallel
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
