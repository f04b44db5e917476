"""The one way in: a single trial for workers, a whole search for notebooks."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import assert_never

import torch
from torch import nn

from models.checkpoint import load_network, load_spec, save_network, write_text
from models.spec import MatrixTask, NetworkSpec
from search.baselines import LEARNED_RANKS, Built, build_baseline
from search.candidate import awareness, learn, learning_steps
from search.clock import Clock
from search.compute import DeviceMissing, Engine, find_device, place
from search.data import Data, load_data
from search.evaluation import deployed, latency, network_cost
from search.fetch import FOLDER, DataMissing
from search.forms import forms_file
from search.latency_table import TIMES, times_in_json
from search.measurement import measure
from search.orders import Orders, start
from search.pace import decided, load_execution
from search.plan import PlannedTrial, planned_trials
from search.profile_summary import summarise
from search.progress import Progress, Recorder, Silent
from search.pruning import should_prune
from search.reference import Reference, load_reference, make_reference, train_reference
from search.report import Execution, Report
from search.resolved import ResolvedSearch, resolve
from search.sampling import propose
from search.settling import settle_dense
from search.spec import BudgetUnreachable, LearnerSettings, SearchSpec, SpecError
from search.team import Alone, Dismissed, Several, Team, joining, leading
from search.time_budget import make_clock, settle_in_time, time_layers
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
from search.warm import EarlierCandidate


class _PrunedError(Exception):
    """Worse than the candidates before it."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Everything one trial works with, in this process of those it may have."""

    spec: SearchSpec
    resolved: ResolvedSearch
    planned: PlannedTrial
    history: Sequence[FinishedTrial]
    data: Data
    folder: Path
    progress: Progress
    orders: Orders
    device: torch.device
    team: Callable[[Execution], Team]
    clock: Clock | None

    @property
    def seed(self) -> int:
        """Repeats train with other seeds, on the same split."""
        return self.spec.seed + 1_000_003 * self.planned.repeat

    def engine(self, execution: Execution) -> Engine:
        """Return what trains in this way, here."""
        return Engine(execution, self.device, self.team(execution))

    @property
    def execution(self) -> Execution:
        """How the search trains: what its reference has chosen, if that was to be chosen."""
        asked = self.spec.compute
        return (
            decided(self.spec)
            or load_execution(_reference_folder(self.history))
            or Execution(device=asked.device, processes=asked.processes)
        )

    def problem(self, reference: Reference, rate: float) -> Problem:
        """Return what a network made from the reference is trained on."""
        teacher = reference.teacher
        known = None if teacher is None else teacher.to(self.device)
        engine = self.engine(self.execution)
        return Problem(self.data, known, self.spec.training, rate, self.seed, engine)


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
        run = _prepared(orders, history, progress, rank=0, port=0, cache=cache)
        return _ended(run, settings, cache=cache, threads=threads)
    except StoppedError:
        return TrialOutcome("CANCELLED", "user_cancel", "stopped after the step it was in")
    except _PrunedError as pruned:
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
    run = _prepared(orders, orders.history, Silent(), rank=rank, port=port)
    with suppress(Dismissed, StoppedError, NotFiniteError):
        match run.planned.kind:
            case "reference":
                train_reference(
                    run.spec,
                    run.resolved,
                    run.data,
                    engine=run.engine(orders.execution),
                    folder=run.folder,
                    progress=run.progress,
                )
            case "baseline":
                _baseline(run)
            case "candidate":
                _candidate(run, orders.settings)
            case "measurement":
                raise AssertionError("one process measures")
            case _:
                assert_never(run.planned.kind)


def _prepared(
    orders: Orders,
    history: Sequence[FinishedTrial],
    progress: Progress,
    *,
    rank: int,
    port: int,
    cache: Path | None = None,
) -> _Run:
    torch.set_num_threads(orders.threads)
    spec, size = orders.spec, orders.spec.compute.processes
    device = find_device(spec.compute.device, rank=rank, processes=size)
    if device.type == "cuda":
        torch.cuda.set_device(device)

    def team(execution: Execution) -> Team:
        if size == 1:
            return Alone()
        told = orders.model_copy(update={"execution": execution})
        meeting = joining(port) if rank else leading(size, partial(start, told))
        return Several(rank, size, device=device, meeting=meeting)

    data = load_data(spec, orders.uploads, orders.fetched)
    resolved = resolve(spec, matrix=data.task if isinstance(data.task, MatrixTask) else None)
    if orders.planned.kind in ("baseline", "candidate"):
        resolved = resolved.under(orders.planned.budget_index)
    clock = None
    if resolved.quantity == "latency":
        assert cache is not None, "a budget in time is for searches with one process"
        clock = make_clock(spec, resolved, data, cache=cache, threads=orders.threads, device=device)
        resolved = time_layers(
            *(spec, resolved, clock, data, progress),
            known=None if orders.planned.kind == "reference" else _reference_folder(history),
            folder=orders.folder,
        )
    return _Run(
        spec=spec,
        resolved=resolved,
        planned=orders.planned,
        history=history,
        data=place(data, device),
        folder=orders.folder,
        progress=progress,
        orders=orders,
        device=device,
        team=team,
        clock=clock,
    )


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
                engine=run.engine,
            )
            outcome = _complete(run, run.resolved.network, network)
            assert outcome.metrics is not None
            outcome.metrics.update(_measured(load_execution(run.folder) or Execution()))
            measured = load_reference(run.folder, run.resolved).profile
            profile = summarise(measured, run.resolved, run.resolved.budgets)
            return replace(outcome, profile=profile)
        case "baseline":
            return _baseline(run)
        case "candidate":
            outcome = _candidate(run, settings)
            wants_latency = run.spec.limits.latency_ratio is not None
            if outcome.metrics and (wants_latency or "latency" in run.spec.objectives):
                outcome.metrics["latency_ratio"] = _latency_ratio(run, cache, threads=threads)
            return outcome
        case "measurement":
            report = measure(
                run.spec,
                run.resolved,
                run.data,
                run.history,
                cache=cache,
                threads=threads,
                progress=run.progress,
                execution=run.execution,
                device=run.device,
            )
            return TrialOutcome("COMPLETE", report=report)
        case _:
            assert_never(run.planned.kind)


def _baseline(run: _Run) -> TrialOutcome:
    family = run.planned.family
    assert family is not None
    reference = load_reference(_reference_folder(run.history), run.resolved)
    settled = settle_in_time(reference, run.resolved, run.clock)
    if family == "learned_low_rank":
        return _learned(run, reference, LEARNED_RANKS)
    if not settled.resolved.eligible:
        return _complete(run, *_tuned(run, reference, settled.whole, from_scratch=False))
    built = build_baseline(
        family,
        settled.network,
        settled.profile,
        settled.resolved,
        generator=torch.Generator().manual_seed(run.seed),
        clock=run.clock,
    )
    return _complete(run, *_tuned(run, reference, built, from_scratch=family == "dense_shrunk"))


def _tuned(run: _Run, reference: Reference, built: Built, *, from_scratch: bool) -> Built:
    """Train the weights of a network whose structures are chosen."""
    exported, network = built
    epochs, recipe = run.spec.compute.epochs, run.spec.training
    rate = recipe.learning_rate if from_scratch else recipe.tuning_rate
    network.to(run.device)
    fit(
        network,
        run.problem(reference, rate),
        Phase("tuning", 0, epochs, epochs),
        weight_groups(network),
        checkpoint=run.folder / "checkpoint.safetensors",
        progress=run.progress,
    )
    return exported, network


def _candidate(run: _Run, settings: LearnerSettings | None) -> TrialOutcome:
    if settings is None:
        return TrialOutcome("FAILED", "error", "no candidate was completed that could be repeated")
    if settings.share is not None:
        run = replace(run, resolved=run.resolved.within(settings.share))
    reference = load_reference(_reference_folder(run.history), run.resolved)
    return _learned(run, reference, settings)


def _learned(run: _Run, reference: Reference, settings: LearnerSettings) -> TrialOutcome:
    """Learn a structure; a candidate that does worse than those before it is pruned."""
    settled = settle_in_time(reference, run.resolved, run.clock)
    if run.clock is not None and settings.structures != "menu" and settled.resolved.eligible:
        settled = settle_dense(settled, awareness(settings))
    if not settled.resolved.eligible:  # rules bind all layers, or all are better run dense
        return _complete(run, *_tuned(run, reference, settled.whole, from_scratch=False))
    recipe = run.spec.training
    from_scratch = settings.start == "scratch"
    rate = recipe.learning_rate if from_scratch else recipe.tuning_rate
    problem = run.problem(reference, rate)
    total = run.spec.compute.epochs * problem.steps_per_epoch
    curve: list[tuple[int, float]] = []

    def compare(step: int, loss: float) -> None:
        if step < learning_steps(settings, total):
            return  # the budget does not hold yet
        curve.append((step, loss))
        if step < total and should_prune(run.spec, run.planned, run.history, curve):
            raise _PrunedError(
                f"its validation loss of {loss:.4f} after step {step} is too high beside "
                f"the candidates before it (pruner {run.spec.sampler.pruner})"
            )

    found = learn(
        settled.network,
        settled.profile,
        settled.resolved,
        settings,
        problem,
        epochs=run.spec.compute.epochs,
        folder=run.folder,
        progress=run.progress,
        after_epoch=compare if run.planned.kind == "candidate" else lambda _step, _loss: None,
        clock=run.clock,
    )
    outcome = _complete(run, found.spec, found.network)
    assert outcome.metrics is not None
    outcome.metrics["hardening_gap"] = found.hardening_gap
    return outcome


def _latency_ratio(run: _Run, cache: Path, *, threads: int) -> float:
    """Measure the exported network as the last trial will, deployed and beside the dense one."""
    folders = run.folder / "export", _reference_folder(run.history) / "export"
    network, dense = (load_network(folder).to(run.device) for folder in folders)
    inputs, generator = run.data.validation.inputs, torch.Generator().manual_seed(run.seed)
    lock, kept = cache / "latency.lock", forms_file(run.spec, cache=cache, threads=threads)
    exported = load_spec(run.folder / "export")
    fast = deployed(network, exported, inputs, lock=lock, kept=kept, generator=generator)
    return latency(fast.network, dense, inputs, lock=lock).over_dense.ratio


def _complete(run: _Run, exported: NetworkSpec, network: nn.Module) -> TrialOutcome:
    save_network(run.folder / "export", exported, network)
    loss, accuracy = evaluate(network.to(run.device), run.data, run.data.validation)
    times = None if run.clock is None else run.clock.costs(exported, run.resolved)
    if times is not None:
        write_text(run.folder / TIMES, times_in_json(times))
    cost = network_cost(exported, run.resolved, times)
    metrics: dict[str, float] = {
        "validation_loss": loss,
        "cost": cost.cost,
        **({"budget": run.resolved.budget} if run.planned.kind != "reference" else {}),
        "macs": cost.macs,
        "parameters": cost.parameters,
        "network_macs": cost.network_macs,
        "network_parameters": cost.network_parameters,
    }
    if accuracy is not None:
        metrics["validation_accuracy"] = accuracy
    if times is not None:
        metrics["predicted_latency_ratio"] = run.resolved.measured.of_network(cost.cost)
    return TrialOutcome("COMPLETE", network=exported, metrics=metrics, times=times)


def _measured(execution: Execution) -> dict[str, float]:
    """Return the ratios that decided how a search trains, if any did."""
    ratios = {
        "bfloat16_over_float32": execution.bfloat16_over_float32,
        "compiled_over_eager": execution.compiled_over_eager,
    }
    return {name: ratio[0] for name, ratio in ratios.items() if ratio is not None}


def _reference_folder(history: Sequence[FinishedTrial]) -> Path:
    for trial in history:
        if trial.planned.kind == "reference" and trial.folder is not None:
            return trial.folder
    raise AssertionError("a trial was started before its reference was complete")


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
    RuntimeError, with its sentence, when the reference or the measurement failed.
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
