"""What a trial does, kind by kind, from its orders to its outcome."""

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

import torch
from torch import nn

from models.checkpoint import load_network, load_spec, save_network, write_text
from models.spec import NetworkSpec
from search.baselines import LEARNED_RANKS, Built, build_baseline
from search.candidate import learn, learning_steps
from search.evaluation import deployed, latency, network_cost
from search.forms import forms_file
from search.latency_table import TIMES, times_in_json
from search.measurement import measure
from search.pace import load_execution
from search.profile_summary import summarise
from search.pruning import should_prune
from search.reference import Reference, load_reference, make_reference, train_reference
from search.report import Execution
from search.settling import settle_dense
from search.spec import LearnerSettings
from search.starts import awareness
from search.time_budget import settle_in_time
from search.training import evaluate, fit, weight_groups
from search.trial import TrialOutcome
from search.trial_run import TrialRun


class PrunedError(Exception):
    """Worse than the candidates before it."""


def finish(run: TrialRun) -> TrialOutcome:
    """Do what the trial's kind asks for, and return what came of it.

    Raises PrunedError, StoppedError, NotFiniteError, BudgetUnreachable and MemberLost.
    """
    match run.planned.kind:
        case "reference":
            return _reference(run)
        case "baseline":
            return _baseline(run)
        case "candidate":
            return _candidate(run)
        case "measurement":
            return _measurement(run)
        case _:
            assert_never(run.planned.kind)


def take_part(run: TrialRun) -> None:
    """Train beside the trial's first process until that dismisses this one."""
    match run.planned.kind:
        case "reference":
            train_reference(
                run.spec,
                run.resolved,
                run.data,
                engine=run.engine(run.orders.execution),
                folder=run.folder,
                progress=run.progress,
            )
        case "baseline":
            _baseline(run)
        case "candidate":
            _candidate(run)
        case "measurement":
            raise AssertionError("one process measures")
        case _:
            assert_never(run.planned.kind)


def _reference(run: TrialRun) -> TrialOutcome:
    network = make_reference(
        run.spec,
        run.resolved,
        run.data,
        cache=run.kept,
        folder=run.folder,
        threads=run.threads,
        progress=run.progress,
        engine=run.engine,
    )
    outcome = _complete(run, run.resolved.network, network)
    assert outcome.metrics is not None
    outcome.metrics.update(_ratios(load_execution(run.folder) or Execution()))
    measured = load_reference(run.folder, run.resolved).profile
    profile = summarise(measured, run.resolved, run.resolved.budgets)
    return replace(outcome, profile=profile)


def _ratios(execution: Execution) -> dict[str, float]:
    """Return the ratios that decided how a search trains, if any did."""
    ratios = {
        "bfloat16_over_float32": execution.bfloat16_over_float32,
        "compiled_over_eager": execution.compiled_over_eager,
    }
    return {name: ratio[0] for name, ratio in ratios.items() if ratio is not None}


def _baseline(run: TrialRun) -> TrialOutcome:
    family = run.planned.family
    assert family is not None
    reference = load_reference(run.reference_folder, run.resolved)
    settled = settle_in_time(reference, run.resolved, run.clock)
    if family == "learned_low_rank":
        return _learned(run, reference, LEARNED_RANKS)
    if not settled.resolved.eligible:
        return _tuned(run, reference, settled.whole, from_scratch=False)
    built = build_baseline(
        family,
        settled.network,
        settled.profile,
        settled.resolved,
        generator=torch.Generator().manual_seed(run.seed),
        clock=run.clock,
        progress=run.progress,
    )
    return _tuned(run, reference, built, from_scratch=family == "dense_shrunk")


def _candidate(run: TrialRun) -> TrialOutcome:
    settings = run.orders.settings
    if settings is None:
        return TrialOutcome("FAILED", "error", "no candidate was completed that could be repeated")
    if settings.share is not None:
        run = replace(run, resolved=run.resolved.within(settings.share))
    reference = load_reference(run.reference_folder, run.resolved)
    outcome = _learned(run, reference, settings)
    wants_latency = run.spec.limits.latency_ratio is not None
    if outcome.metrics and (wants_latency or "latency" in run.spec.objectives):
        outcome.metrics["latency_ratio"] = _latency_ratio(run)
    return outcome


def _measurement(run: TrialRun) -> TrialOutcome:
    report = measure(
        run.spec,
        run.resolved,
        run.data,
        run.history,
        cache=run.kept,
        threads=run.threads,
        progress=run.progress,
        execution=run.execution,
        device=run.device,
    )
    return TrialOutcome("COMPLETE", report=report)


def _tuned(
    run: TrialRun, reference: Reference, built: Built, *, from_scratch: bool
) -> TrialOutcome:
    """Train the weights of a network whose structures are chosen."""
    exported, network = built
    network.to(run.device)
    course = run.course(reference, from_scratch=from_scratch)
    fit(network, course, weight_groups(network), phase="tuning")
    return _complete(run, exported, network)


def _learned(run: TrialRun, reference: Reference, settings: LearnerSettings) -> TrialOutcome:
    """Learn a structure; a candidate that does worse than those before it is pruned."""
    settled = settle_in_time(reference, run.resolved, run.clock)
    if run.clock is not None and settings.structures != "menu" and settled.resolved.eligible:
        settled = settle_dense(settled, awareness(settings))
    if not settled.resolved.eligible:  # rules bind all layers, or all are better run dense
        return _tuned(run, reference, settled.whole, from_scratch=False)
    course = run.course(reference, from_scratch=settings.start == "scratch")
    if run.planned.kind == "candidate":
        course = replace(course, after_epoch=_pruning(run, settings, course.steps))
    found = learn(settled, settings, course, clock=run.clock)
    outcome = _complete(run, found.spec, found.network)
    assert outcome.metrics is not None
    outcome.metrics["hardening_gap"] = found.hardening_gap
    return outcome


def _pruning(
    run: TrialRun, settings: LearnerSettings, total_steps: int
) -> Callable[[int, float], None]:
    """Return what follows a candidate's validation loss, and raises PrunedError."""
    curve: list[tuple[int, float]] = []

    def compare(step: int, loss: float) -> None:
        if step < learning_steps(settings, total_steps):
            return  # the budget does not hold yet
        curve.append((step, loss))
        if step < total_steps and should_prune(run.spec, run.planned, run.history, curve):
            raise PrunedError(
                f"its validation loss of {loss:.4f} after step {step} is too high beside "
                f"the candidates before it (pruner {run.spec.sampler.pruner})"
            )

    return compare


def _latency_ratio(run: TrialRun) -> float:
    """Measure the exported network as the last trial will, deployed and beside the dense one."""
    folders = run.folder / "export", run.reference_folder / "export"
    network, dense = (load_network(folder).to(run.device) for folder in folders)
    inputs, generator = run.data.validation.inputs, torch.Generator().manual_seed(run.seed)
    lock = run.kept / "latency.lock"
    kept = forms_file(run.spec, cache=run.kept, threads=run.threads)
    exported = load_spec(run.folder / "export")
    fast = deployed(network, exported, inputs, lock=lock, kept=kept, generator=generator)
    return latency(fast.network, dense, inputs, lock=lock).over_dense.ratio


def _complete(run: TrialRun, exported: NetworkSpec, network: nn.Module) -> TrialOutcome:
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
