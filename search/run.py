"""The one way in: a single trial for workers, a whole search for notebooks."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from search.compute import DeviceMissing
from search.fetch import FOLDER, DataMissing
from search.kinds import PrunedError, finish, take_part
from search.orders import Orders
from search.plan import PlannedTrial, planned_trials
from search.progress import Progress, Recorder, Silent, StoppedError
from search.report import Report
from search.resolved import resolve
from search.sampling import propose
from search.spec import BudgetUnreachable, LearnerSettings, SearchSpec, SpecError
from search.team import Dismissed
from search.training import NotFiniteError
from search.trial import FinishedTrial, TrialOutcome
from search.trial_run import prepare
from search.warm import EarlierCandidate


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
    fetched: Path = FOLDER,
) -> TrialOutcome:
    """Run one trial to its end, or until asked to stop, resuming from `folder` where it can.

    `uploads/<artifact id>` holds what the spec names, `fetched` the data that no Python package
    carries; `cache` keeps references between searches.
    `history` holds at least the ended trials that this one waited for (see `plan.prerequisites`);
    the network lies in `folder/export` afterwards. Raises MemberLost where the training has several
    processes and one of them dies.
    """
    several = spec.compute.processes > 1 and planned.kind != "measurement"
    orders = Orders(
        spec=spec,
        planned=planned,
        history=tuple(trial for trial in history if trial.planned.kind == "reference"),
        settings=settings,
        uploads=uploads.resolve(),
        fetched=fetched.resolve(),
        folder=folder.resolve(),
        threads=max(1, threads // spec.compute.processes) if several else threads,
    )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return finish(prepare(orders, history, progress, threads=threads, cache=cache))
    except StoppedError:
        return TrialOutcome("CANCELLED", "user_cancel", "stopped after the step it was in")
    except PrunedError as pruned:
        return TrialOutcome("PRUNED", "pruned", str(pruned))
    except (NotFiniteError, BudgetUnreachable, DataMissing, DeviceMissing) as error:
        return _failed(error)


def _failed(
    error: NotFiniteError | BudgetUnreachable | DataMissing | DeviceMissing,
) -> TrialOutcome:
    match error:
        case NotFiniteError():
            return TrialOutcome("FAILED", "not_finite", str(error))
        case BudgetUnreachable():
            return TrialOutcome("FAILED", "budget_unreachable", error.sentence)
        case DataMissing():
            return TrialOutcome("FAILED", "data_missing", str(error))
        case DeviceMissing():
            return TrialOutcome("FAILED", "device_missing", str(error))
        case _:
            assert_never(error)


def join_trial(orders: Orders, *, rank: int, port: int) -> None:
    """Take part in the training of a trial whose first process waits at a port of this machine."""
    history, threads = orders.history, orders.threads
    run = prepare(orders, history, Silent(), rank=rank, port=port, threads=threads)
    with suppress(Dismissed, StoppedError, NotFiniteError):
        take_part(run)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The evidence, every trial's outcome by number, and where the exported networks lie.

    `history` is what later trials, and later searches, may know of its trials.
    """

    report: Report
    outcomes: dict[int, TrialOutcome]
    folders: dict[int, Path]
    history: tuple[FinishedTrial, ...]


def run_search(
    spec: SearchSpec,
    *,
    folder: Path,
    uploads: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    fetched: Path = FOLDER,
    earlier: Sequence[EarlierCandidate] | None = None,
) -> SearchResult:
    """Run a whole search in this process, trial after trial; `folder` keeps files and cache.

    `earlier` are the candidates it is warm-started with (see `search.warm.inherited`).

    Raises SpecError where the spec can never work, StoppedError when told to stop, and
    RuntimeError, with its sentence, when the reference or the measurement failed, or whatever was
    tried beside the reference.
    """
    if spec.warm_start is not None and earlier is None:
        raise SpecError(
            "warm_start", "names a search of the service; without it, give candidates as `earlier`"
        )
    if spec.dataset is not None:  # of a matrix, its file says how large it is
        resolve(spec)
    history: list[FinishedTrial] = []
    outcomes: dict[int, TrialOutcome] = {}
    for planned in planned_trials(spec):
        if planned.kind == "measurement" and (spoilt := _nothing_found(history, outcomes)):
            raise RuntimeError(spoilt)
        recorder = Recorder(progress or Silent())
        settings = None
        if planned.kind == "candidate":
            settings = propose(spec, planned, history, earlier or ())
        place = folder / "trials" / str(planned.number)
        outcome = run_trial(
            spec,
            planned,
            history,
            settings=settings,
            uploads=uploads or folder,
            cache=folder / "cache",
            folder=place,
            threads=threads or os.cpu_count() or 1,
            progress=recorder,
            fetched=fetched,
        )
        outcomes[planned.number] = outcome
        if outcome.state == "CANCELLED":
            raise StoppedError
        if outcome.state != "COMPLETE" and planned.kind in ("reference", "measurement"):
            raise RuntimeError(f"the {planned.kind} failed: {outcome.sentence}")
        loss = (outcome.metrics or {}).get("validation_loss")
        history.append(
            FinishedTrial(
                planned,
                outcome.state,
                settings,
                loss,
                tuple(recorder.curve),
                place,
                outcome.metrics or {},
            )
        )
    report = outcomes[planned.number].report
    assert report is not None
    folders = {t.planned.number: t.folder for t in history if t.folder}
    return SearchResult(report, outcomes, folders, tuple(history))


def _nothing_found(
    history: Sequence[FinishedTrial], outcomes: Mapping[int, TrialOutcome]
) -> str | None:
    """Say why the first failed, where nothing beside the reference is complete."""
    tried = [trial for trial in history if trial.planned.kind != "reference"]
    failed = [trial.planned for trial in tried if trial.state == "FAILED"]
    if not failed or any(trial.state == "COMPLETE" for trial in tried):
        return None
    sentence = outcomes[failed[0].number].sentence
    return f"nothing within the budget was completed; {failed[0].name}: {sentence}"
