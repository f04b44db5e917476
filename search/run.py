"""The one way in: a single trial for workers, a whole search for notebooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.spec import NetworkSpec
from search.plan import PlannedTrial, TrialState
from search.progress import Progress
from search.report import Report
from search.spec import LearnerSettings, SearchSpec

OutcomeReason = Literal["", "user_cancel", "not_finite", "budget_unreachable", "pruned"]


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """What later trials may know of an earlier one.

    `curve` holds (step, validation loss) as reported; `folder` is where its `export/` lies.
    """

    planned: PlannedTrial
    state: TrialState
    settings: LearnerSettings | None
    validation_loss: float | None
    curve: tuple[tuple[int, float], ...]
    folder: Path | None


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """How a trial ended: COMPLETE, PRUNED, FAILED, or CANCELLED because it was asked to stop."""

    state: TrialState
    reason: OutcomeReason = ""
    sentence: str = ""
    network: NetworkSpec | None = None
    metrics: dict[str, float] | None = None
    report: Report | None = None


def propose(
    spec: SearchSpec, planned: PlannedTrial, history: Sequence[FinishedTrial]
) -> LearnerSettings:
    """Propose a candidate's settings from the candidates `parallel` or more before it."""
    raise NotImplementedError


def run_trial(
    spec: SearchSpec,
    planned: PlannedTrial,
    history: Sequence[FinishedTrial],
    *,
    settings: LearnerSettings | None,
    uploads: Path,
    cache: Path,
    folder: Path,
    threads: int,
    progress: Progress,
) -> TrialOutcome:
    """Run one trial to its end, or until asked to stop, resuming from `folder` where it can.

    `uploads/<artifact id>` holds what the spec names; `cache` keeps references between searches.
    """
    raise NotImplementedError
