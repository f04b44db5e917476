"""What a trial is told of earlier ones, and how it says that it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.spec import NetworkSpec
from search.plan import PlannedTrial, TrialState
from search.profile_report import ProfileReport
from search.report import Report
from search.spec import LearnerSettings

OutcomeReason = Literal[
    "",
    "user_cancel",
    "not_finite",
    "budget_unreachable",
    "data_missing",
    "device_missing",
    "pruned",
    "error",
]


class MemberLost(Exception):
    """One of a trial's processes has died, so that the others wait in vain."""

    def __init__(self, rank: int, size: int, code: int) -> None:
        super().__init__(f"process {rank + 1} of {size} ended with {code}")


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """What later trials may know of an earlier one.

    `curve` holds (step, validation loss); `folder` is the one `run_trial` was given, and `metrics`
    what it ended with.
    """

    planned: PlannedTrial
    state: TrialState
    settings: LearnerSettings | None
    validation_loss: float | None
    curve: tuple[tuple[int, float], ...]
    folder: Path | None
    metrics: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """How a trial ended: COMPLETE, PRUNED, FAILED, or CANCELLED because it was asked to stop.

    `times` is what each searched layer takes, where the budget is in time.
    """

    state: TrialState
    reason: OutcomeReason = ""
    sentence: str = ""
    network: NetworkSpec | None = None
    metrics: dict[str, float] | None = None
    report: Report | None = None
    profile: ProfileReport | None = None
    times: Mapping[str, int] | None = None
