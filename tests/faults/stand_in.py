"""In the place of `search.run` where only the service is tested: a training without a network.

Its state is a hash that every epoch hashes again, so that no epoch can be left out, done twice or
gone on with from another state without another number at the end.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from models.durable import DiskFull, replace_file
from search.plan import PlannedTrial
from search.progress import Progress, Update
from search.resolved import resolve
from search.spec import LearnerSettings, SearchSpec
from search.trial import FinishedTrial, TrialOutcome
from tests.serving import made_network, made_profile, made_report, made_times

INJECTED = Path(__file__).with_name("injected")
EPOCHS, EPOCH_SECONDS = 40, 0.05
PADDING = "0" * 10_000  # so that there may be no room for it
log = logging.getLogger(__name__)
STOPPED = TrialOutcome("CANCELLED", "user_cancel", "stopped after the step it was in")


def without_torch() -> str:
    """The PYTHONPATH of processes whose trials are these."""
    return os.pathsep.join([str(INJECTED), *filter(None, [os.environ.get("PYTHONPATH")])])


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
    fetched: Path,
) -> TrialOutcome:
    """Do what a trial does, as far as the service sees it."""
    del uploads, cache, threads, fetched
    resolved = resolve(spec)
    if planned.kind == "measurement":
        return _measured(spec, history)
    begins = [spec.seed, planned.number, settings.model_dump(mode="json") if settings else None]
    known = [(past.planned.number, dict(past.metrics)) for past in history]
    done, state = _load(folder) or (0, _hash([*begins, known]))
    while done < EPOCHS:
        if progress.should_stop():
            return STOPPED
        time.sleep(EPOCH_SECONDS)
        done, state = done + 1, _hash([state])
        try:
            _write(folder / "checkpoint.safetensors", json.dumps([done, state, PADDING]))
        except DiskFull as error:  # the one before stays
            log.warning("there is no room for a checkpoint: %s", error)
        progress.report(Update("training", done, EPOCHS, metrics={"validation_loss": _loss(state)}))
    network = made_network(planned, resolved)
    export = folder / "export"
    export.mkdir(exist_ok=True)
    _write(export / "network.json", network.model_dump_json())
    _write(export / "network.txt", state)
    return TrialOutcome(
        "COMPLETE",
        network=network,
        metrics={"validation_loss": _loss(state), "test_accuracy": 0.9},
        profile=made_profile(resolved) if planned.kind == "reference" else None,
        times=made_times(planned, resolved),
    )


def _measured(spec: SearchSpec, history: Sequence[FinishedTrial]) -> TrialOutcome:
    losses = {}
    for past in history:
        if past.state == "COMPLETE":
            assert past.folder is not None
            state = (past.folder / "export" / "network.txt").read_text()
            assert _loss(state) == past.validation_loss, "the file is another attempt's"
            if past.planned.kind != "reference":
                losses[past.planned.number] = _loss(state)
    report = made_report(spec, resolve(spec))
    best = min(losses, key=lambda number: losses[number])
    (winner,) = (row for row in report.rows if row.number == best)
    return TrialOutcome("COMPLETE", report=report.model_copy(update={"winner": winner}))


def _write(path: Path, text: str) -> None:
    replace_file(path, lambda temporary: temporary.write_text(text))


def _load(folder: Path) -> tuple[int, str] | None:
    try:
        done, state, _ = json.loads((folder / "checkpoint.safetensors").read_text())
    except FileNotFoundError:
        return None
    return int(done), str(state)


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _loss(state: str) -> float:
    return int(state[:8], 16) / 2**32
