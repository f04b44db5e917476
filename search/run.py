"""The one way in: a single trial for workers, a whole search for notebooks."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from torch import nn

from models.checkpoint import save_network
from models.spec import MatrixTask, NetworkSpec
from search.baselines import LEARNED_RANKS, Built, build_baseline
from search.candidate import learn, learning_steps
from search.data import Data, load_data
from search.evaluation import network_cost
from search.fetch import FOLDER, DataMissing
from search.measurement import measure
from search.plan import PlannedTrial, planned_trials
from search.progress import Progress, Update
from search.reference import Reference, load_reference, make_reference
from search.report import Report
from search.sampling import propose, should_prune
from search.settling import settle
from search.spec import BudgetUnreachable, LearnerSettings, ResolvedSearch, SearchSpec, resolve
from search.training import (
    NotFiniteError,
    Phase,
    Problem,
    StoppedError,
    evaluate,
    fit,
    weight_groups,
)
from search.trial import FinishedTrial, TrialOutcome


class _PrunedError(Exception):
    """Worse than the candidates before it."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Everything one trial works with."""

    spec: SearchSpec
    resolved: ResolvedSearch
    planned: PlannedTrial
    history: Sequence[FinishedTrial]
    data: Data
    folder: Path
    progress: Progress

    @property
    def seed(self) -> int:
        """Repeats train with other seeds, on the same split."""
        return self.spec.seed + 1_000_003 * self.planned.repeat


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
    the network lies in `folder/export` afterwards.
    """
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        data = load_data(spec, uploads, fetched)
        resolved = resolve(spec, matrix=data.task if isinstance(data.task, MatrixTask) else None)
        run = _Run(spec, resolved, planned, history, data, folder, progress)
        return _ended(run, settings, cache=cache, threads=threads)
    except StoppedError:
        return TrialOutcome("CANCELLED", "user_cancel", "stopped after the step it was in")
    except _PrunedError as pruned:
        return TrialOutcome("PRUNED", "pruned", str(pruned))
    except NotFiniteError as error:
        return TrialOutcome("FAILED", "not_finite", str(error))
    except BudgetUnreachable as error:
        return TrialOutcome("FAILED", "budget_unreachable", error.sentence)
    except DataMissing as error:
        return TrialOutcome("FAILED", "data_missing", str(error))


def _ended(
    run: _Run, settings: LearnerSettings | None, *, cache: Path, threads: int
) -> TrialOutcome:
    match run.planned.kind:
        case "reference":
            network = make_reference(
                run.spec,
                run.resolved,
                run.data,
                cache=cache,
                folder=run.folder,
                threads=threads,
                progress=run.progress,
            )
            return _complete(run, run.resolved.network, network)
        case "baseline":
            return _baseline(run)
        case "candidate":
            return _candidate(run, settings)
        case "measurement":
            report = measure(
                run.spec,
                run.resolved,
                run.data,
                run.history,
                cache=cache,
                threads=threads,
                progress=run.progress,
            )
            return TrialOutcome("COMPLETE", report=report)
        case _:
            assert_never(run.planned.kind)


def _baseline(run: _Run) -> TrialOutcome:
    family = run.planned.family
    assert family is not None
    reference = load_reference(_reference_folder(run.history), run.resolved)
    settled = settle(reference.network, reference.profile, run.resolved)
    if family == "learned_low_rank":
        return _complete(run, *_learned(run, reference, LEARNED_RANKS))
    if not settled.resolved.eligible:
        return _complete(run, *_tuned(run, reference, settled.whole, from_scratch=False))
    built = build_baseline(
        family,
        settled.network,
        settled.profile,
        settled.resolved,
        generator=torch.Generator().manual_seed(run.seed),
    )
    return _complete(run, *_tuned(run, reference, built, from_scratch=family == "dense_shrunk"))


def _tuned(run: _Run, reference: Reference, built: Built, *, from_scratch: bool) -> Built:
    """Train the weights of a network whose structures are chosen."""
    exported, network = built
    epochs, recipe = run.spec.compute.epochs, run.spec.training
    rate = recipe.learning_rate if from_scratch else recipe.tuning_rate
    fit(
        network,
        Problem(run.data, reference.teacher, recipe, rate, run.seed),
        Phase("tuning", 0, epochs, epochs),
        weight_groups(network),
        checkpoint=run.folder / "checkpoint.safetensors",
        progress=run.progress,
    )
    return exported, network


def _candidate(run: _Run, settings: LearnerSettings | None) -> TrialOutcome:
    if settings is None:
        return TrialOutcome("FAILED", "error", "no candidate was completed that could be repeated")
    reference = load_reference(_reference_folder(run.history), run.resolved)
    return _complete(run, *_learned(run, reference, settings))


def _learned(run: _Run, reference: Reference, settings: LearnerSettings) -> Built:
    """Learn a structure; a candidate that does worse than those before it is pruned."""
    settled = settle(reference.network, reference.profile, run.resolved)
    if not settled.resolved.eligible:  # rules bind all layers
        return _tuned(run, reference, settled.whole, from_scratch=False)
    recipe = run.spec.training
    problem = Problem(run.data, reference.teacher, recipe, recipe.tuning_rate, run.seed)
    total = run.spec.compute.epochs * problem.steps_per_epoch
    curve: list[tuple[int, float]] = []

    def compare(step: int, loss: float) -> None:
        if step < learning_steps(settings, total):
            return  # the budget does not hold yet
        curve.append((step, loss))
        if step < total and should_prune(run.spec, run.planned, run.history, curve):
            raise _PrunedError(
                f"its validation loss of {loss:.4f} after step {step} is above the median "
                "of the candidates before it"
            )

    return learn(
        settled.network,
        settled.profile,
        settled.resolved,
        settings,
        problem,
        epochs=run.spec.compute.epochs,
        folder=run.folder,
        progress=run.progress,
        after_epoch=compare if run.planned.kind == "candidate" else lambda _step, _loss: None,
    )


def _complete(run: _Run, exported: NetworkSpec, network: nn.Module) -> TrialOutcome:
    save_network(run.folder / "export", exported, network)
    loss, accuracy = evaluate(network, run.data, run.data.validation)
    cost = network_cost(exported, run.resolved)
    metrics: dict[str, float] = {
        "validation_loss": loss,
        "cost": cost.cost,
        "macs": cost.macs,
        "parameters": cost.parameters,
        "network_macs": cost.network_macs,
        "network_parameters": cost.network_parameters,
    }
    if accuracy is not None:
        metrics["validation_accuracy"] = accuracy
    return TrialOutcome("COMPLETE", network=exported, metrics=metrics)


def _reference_folder(history: Sequence[FinishedTrial]) -> Path:
    for trial in history:
        if trial.planned.kind == "reference" and trial.folder is not None:
            return trial.folder
    raise AssertionError("a trial was started before its reference was complete")


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The evidence, every trial's outcome by number, and where the exported networks lie."""

    report: Report
    outcomes: dict[int, TrialOutcome]
    folders: dict[int, Path]


def run_search(
    spec: SearchSpec,
    *,
    folder: Path,
    uploads: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    fetched: Path = FOLDER,
) -> SearchResult:
    """Run a whole search in this process, trial after trial; `folder` keeps files and cache.

    Raises SpecError where the spec can never work, StoppedError when told to stop, and
    RuntimeError, with its sentence, when the reference or the measurement failed.
    """
    history: list[FinishedTrial] = []
    outcomes: dict[int, TrialOutcome] = {}
    for planned in planned_trials(spec):
        recorder = _Recorder(progress or Silent())
        settings = propose(spec, planned, history) if planned.kind == "candidate" else None
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
            FinishedTrial(planned, outcome.state, settings, loss, tuple(recorder.curve), place)
        )
    report = outcomes[planned.number].report
    assert report is not None
    return SearchResult(report, outcomes, {t.planned.number: t.folder for t in history if t.folder})


class Silent:
    """Progress for nobody: nothing is said, and nothing stops it."""

    def report(self, update: Update) -> None:
        """Say nothing."""

    def should_stop(self) -> bool:
        """Never."""
        return False


class _Recorder:
    """Keeps the validation curve that later trials are pruned against."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self.curve: list[tuple[int, float]] = []

    def report(self, update: Update) -> None:
        if "validation_loss" in update.metrics:
            self.curve.append((update.done, update.metrics["validation_loss"]))
        self.inner.report(update)

    def should_stop(self) -> bool:
        return self.inner.should_stop()
