"""When a search will be done, from how long its trials took so far: pure arithmetic."""

from datetime import datetime
from typing import Protocol

from search.plan import TrialKind
from search.spec import SearchSpec
from service.jobs.tally import Begun, Tally
from service.jobs.views import ProgressView


class Run(Protocol):
    """What tells how long a trial has run."""

    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def begun_at(self) -> datetime | None: ...  # noqa: D102
    @property
    def ran_seconds(self) -> float: ...  # noqa: D102


def progress_of(tally: Tally, spec: SearchSpec, *, now: datetime) -> ProgressView:
    """How many trials have ended, what the running ones do, and how long the rest may take."""
    running = [trial for trial in tally.begun if trial.state == "RUNNING"]
    return ProgressView(
        phase="; ".join(f"{trial.name}: {_stage(trial)}" for trial in running),
        done=sum(counted.number for counted in tally.counted if counted.ended),
        total=sum(counted.number for counted in tally.counted),
        unit="trial",
        eta_seconds=_remaining_seconds(tally, spec, now=now),
    )


def ran(trial: Run, now: datetime) -> float:
    """How long a trial has run, in all of its attempts, without its pauses."""
    if trial.state != "RUNNING" or trial.begun_at is None:
        return trial.ran_seconds
    return trial.ran_seconds + max(0.0, (now - trial.begun_at).total_seconds())


def _stage(trial: Begun) -> str:
    if trial.phase is None:
        return "starting"
    return f"{trial.phase}, {trial.unit} {trial.done} of {trial.total}"


def _remaining_seconds(tally: Tally, spec: SearchSpec, *, now: datetime) -> float | None:
    left: dict[TrialKind, int] = {}
    for counted in tally.counted:
        if not counted.ended:
            left[counted.kind] = left.get(counted.kind, 0) + counted.number
    seconds = 0.0
    for kind, number in left.items():
        usual = _expected_seconds(kind, tally, spec, now)
        if usual is None:
            return None
        begun = [trial for trial in tally.begun if trial.kind == kind]
        seconds += usual * (number - len(begun))
        seconds += sum(max(0.0, usual - ran(trial, now)) for trial in begun)
    return seconds / max(1, sum(trial.state == "RUNNING" for trial in tally.begun))


def _expected_seconds(
    kind: TrialKind, tally: Tally, spec: SearchSpec, now: datetime
) -> float | None:
    """The mean of its kind, else of the shorter trials, else by epochs from the reference."""
    took = {
        counted.kind: counted.seconds / counted.number
        for counted in tally.counted
        if counted.state == "COMPLETE" and counted.kind != "measurement"
    }
    if kind != "reference":
        for like in (kind, "candidate", "baseline"):
            if like in took:
                return took[like]
    reference = took.get("reference", _foreseen(tally, now))
    if reference is None:
        return None
    epochs = spec.compute.reference_epochs if kind == "reference" else spec.compute.epochs
    return reference * epochs / spec.compute.reference_epochs


def _foreseen(tally: Tally, now: datetime) -> float | None:
    """What the running reference will have taken, once its start no longer hides its pace."""
    for trial in tally.begun:
        if trial.kind == "reference" and trial.state == "RUNNING" and trial.done and trial.total:
            if trial.done < 0.05 * trial.total:
                return None
            return ran(trial, now) * trial.total / trial.done
    return None
