"""When a search will be done, from how long its trials took so far: pure arithmetic over rows."""

from collections.abc import Sequence
from datetime import datetime
from statistics import fmean
from typing import cast

from search.plan import ENDED, TrialState
from search.spec import SearchSpec
from service.db.tables import TrialRow
from service.jobs.views import ProgressView


def progress_of(trials: Sequence[TrialRow], spec: SearchSpec, *, now: datetime) -> ProgressView:
    """How many trials have ended, what the running ones do, and how long the rest may take."""
    running = [trial for trial in trials if trial.state == "RUNNING"]
    return ProgressView(
        phase="; ".join(f"{trial.name}: {_stage(trial)}" for trial in running),
        done=sum(_has_ended(trial) for trial in trials),
        total=len(trials),
        unit="trial",
        eta_seconds=_remaining_seconds(trials, spec, now=now),
    )


def ran(trial: TrialRow, now: datetime) -> float:
    """How long a trial has run, in all of its attempts, without its pauses."""
    if trial.state != "RUNNING" or trial.begun_at is None:
        return trial.ran_seconds
    return trial.ran_seconds + max(0.0, (now - trial.begun_at).total_seconds())


def _stage(trial: TrialRow) -> str:
    if trial.phase is None:
        return "starting"
    return f"{trial.phase}, {trial.unit} {trial.done} of {trial.total}"


def _remaining_seconds(
    trials: Sequence[TrialRow], spec: SearchSpec, *, now: datetime
) -> float | None:
    left = [trial for trial in trials if not _has_ended(trial)]
    if not left:
        return 0.0
    expected = {trial.kind: _expected_seconds(trial.kind, trials, spec, now) for trial in left}
    seconds = 0.0
    for trial in left:
        usual = expected[trial.kind]
        if usual is None:
            return None
        seconds += max(0.0, usual - ran(trial, now))
    return seconds / max(1, sum(trial.state == "RUNNING" for trial in trials))


def _expected_seconds(
    kind: str, trials: Sequence[TrialRow], spec: SearchSpec, now: datetime
) -> float | None:
    """The mean of its kind, else of the shorter trials, else by epochs from the reference."""
    took = {
        name: [trial.ran_seconds for trial in trials if trial.kind == name and _was_run(trial)]
        for name in ("reference", "baseline", "candidate")
    }
    took["measurement"] = []
    took["reference"] = took["reference"] or _foreseen(trials[0], now)
    for seconds in (took[kind], took["candidate"], took["baseline"]):
        if seconds and kind != "reference":
            return fmean(seconds)
    if not took["reference"]:
        return None
    epochs = spec.compute.reference_epochs if kind == "reference" else spec.compute.epochs
    return took["reference"][0] * epochs / spec.compute.reference_epochs


def _foreseen(reference: TrialRow, now: datetime) -> list[float]:
    """What the running reference will have taken, once its start no longer hides its pace."""
    if reference.state != "RUNNING" or not reference.done or not reference.total:
        return []
    if reference.done < 0.05 * reference.total:
        return []
    return [ran(reference, now) * reference.total / reference.done]


def _was_run(trial: TrialRow) -> bool:
    return trial.state == "COMPLETE" and trial.started_at is not None


def _has_ended(trial: TrialRow) -> bool:
    return cast("TrialState", trial.state) in ENDED
