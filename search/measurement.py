"""The last trial: every exported network read again in a fresh process, and the winner named."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from models.checkpoint import export, load_network, load_spec, save_forms
from models.deployment import DeployedNetwork, with_forms
from models.spec import NetworkSpec
from search import pareto
from search.compute import CPU
from search.data import Data
from search.evaluation import BATCH, Latency, deployed, latency, network_cost
from search.forms import forms_file
from search.importance import importances
from search.latency_table import load_times
from search.limits import exceeded
from search.plan import PlannedTrial
from search.progress import Progress, followed
from search.report import (
    PLAIN,
    BudgetResult,
    Execution,
    Importance,
    Report,
    ReportRow,
)
from search.resolved import ResolvedSearch
from search.sampler import Limits
from search.spec import SearchSpec
from search.training import evaluate
from search.trial import FinishedTrial


@dataclass(frozen=True, slots=True)
class _Read:
    """An exported network as its file has it, measured on the validation part, and deployed."""

    trial: FinishedTrial
    budget: int
    folder: Path
    network: nn.Module
    exported: NetworkSpec
    deployed: DeployedNetwork
    loss: float
    accuracy: float | None
    timed: Latency
    times: dict[str, int] | None

    @property
    def planned(self) -> PlannedTrial:
        """Which trial of the search it is."""
        return self.trial.planned


def measure(
    spec: SearchSpec,
    resolved: ResolvedSearch,
    data: Data,
    history: Sequence[FinishedTrial],
    *,
    cache: Path,
    threads: int,
    progress: Progress,
    execution: Execution = PLAIN,
    device: torch.device = CPU,
) -> Report:
    """Measure all complete trials from their files, and export the best for plain torch.

    Beside each network that is measured, all but repeats, lie then the forms in which its layers
    run. Those that this search, or the same one earlier, has chosen are in `cache`, with the
    machine-wide lock. Validation chooses each budget's best candidate and winner; only then is the
    test part read.
    """
    lock, kept = cache / "latency.lock", forms_file(spec, cache=cache, threads=threads)
    complete = [trial for trial in history if trial.state == "COMPLETE"]
    firsts = [trial for trial in complete if not trial.planned.repeat]
    dense = load_network(_exported(firsts[0])).to(device)
    read = [
        _read(trial, data, dense, resolved, lock=lock, kept=kept, seed=spec.seed)
        for trial in followed(firsts, progress, "measurement", unit="network")
    ]
    best = _best_of_each_budget(read, spec.limits, resolved)
    rows = [
        ReportRow.model_validate(
            _row(spec, resolved, data, one, is_best=one in best)
            | _spread(one, complete, is_best=one in best)
        )
        for one in read
    ]
    mattered = _importances(spec, firsts)
    report = _report(resolved, read, rows, mattered, threads=threads, execution=execution)
    for one in read:
        if one in best or one.planned.number in report.winners | {report.winner.number}:
            # Programs are for the CPU, where everybody can load them.
            network, inputs = load_network(one.folder), data.validation.inputs[:2].cpu()
            fast = with_forms(network, one.deployed.forms)
            export(one.folder, one.exported, network, inputs, deployed=fast)
    return report


def _best_of_each_budget(
    read: Sequence[_Read], limits: Limits, resolved: ResolvedSearch
) -> list[_Read]:
    best: dict[int, _Read] = {}
    for one in read:
        if one.planned.kind != "candidate" or exceeded(limits, _measures(one, resolved)):
            continue
        for index, budget in enumerate(resolved.budgets):
            if one.planned.group == index or (one.planned.drawn and one.budget <= budget):
                before = best.setdefault(index, one)
                best[index] = one if one.loss < before.loss else before
    return list(best.values())


def _exported(trial: FinishedTrial) -> Path:
    assert trial.folder is not None, "a complete trial has its export"
    return trial.folder / "export"


def _read(
    trial: FinishedTrial,
    data: Data,
    dense: nn.Module,
    resolved: ResolvedSearch,
    *,
    lock: Path,
    kept: Path,
    seed: int,
) -> _Read:
    folder, inputs = _exported(trial), data.validation.inputs
    network, exported = load_network(folder).to(inputs.device), load_spec(folder)
    loss, accuracy = evaluate(network, data, data.validation)
    generator = torch.Generator().manual_seed(seed)
    fast = deployed(network, exported, inputs, lock=lock, kept=kept, generator=generator)
    save_forms(folder, fast.forms)
    timed = latency(fast.network, dense, inputs, lock=lock)
    budget = _budget(trial, resolved)
    times = load_times(folder.parent)
    return _Read(trial, budget, folder, network, exported, fast, loss, accuracy, timed, times)


def _budget(trial: FinishedTrial, resolved: ResolvedSearch) -> int:
    """Return the budget that held for a trial: its own, where it was drawn."""
    if trial.settings is not None and trial.settings.share is not None:
        return resolved.within(trial.settings.share).budget
    return resolved.budgets[trial.planned.budget_index]


def _row(
    spec: SearchSpec, resolved: ResolvedSearch, data: Data, one: _Read, *, is_best: bool
) -> dict[str, object]:
    test_loss, test_accuracy = None, None
    if is_best or one.planned.kind != "candidate":
        test_loss, test_accuracy = evaluate(one.network, data, data.test)
    is_reference = one.planned.kind == "reference"
    return asdict(network_cost(one.exported, resolved, one.times)) | {
        "times": one.times,
        "predicted_latency_ratio": None
        if one.times is None
        else resolved.measured.of_network(sum(one.times.values())),
        "exceeds": () if is_reference else exceeded(spec.limits, _measures(one, resolved)),
        "number": one.planned.number,
        "name": one.planned.name,
        "kind": one.planned.kind,
        "budget_index": None if is_reference else one.planned.group,
        "budget": None if is_reference else one.budget,
        "validation_loss": one.loss,
        "validation_accuracy": one.accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "latency_ratio": one.timed.over_dense.ratio,
        "latency_quartiles": one.timed.over_dense.quartiles,
        "forms": one.deployed.forms,
        "epochs": spec.compute.reference_epochs if is_reference else spec.compute.epochs,
        "network": one.exported,
    }


def _measures(one: _Read, resolved: ResolvedSearch) -> dict[str, float | None]:
    """Return what the limits and the budget are compared with."""
    return asdict(network_cost(one.exported, resolved, one.times)) | {
        "budget": one.budget,
        "latency_ratio": one.timed.over_dense.ratio,
    }


def _spread(one: _Read, complete: Sequence[FinishedTrial], *, is_best: bool) -> dict[str, object]:
    """Return the number of seeds and the deviation of the validation loss over them."""
    again = {
        trial.planned.repeat: trial.validation_loss
        for trial in complete
        if trial.planned.repeat
        and trial.validation_loss is not None
        and _same_choice(trial, one.trial)
        and (is_best or one.planned.kind == "baseline")
    }
    if not again:
        return {}
    losses = [one.loss, *again.values()]
    return {
        "repeats": len(losses),
        "validation_loss_mean": statistics.fmean(losses),
        "validation_loss_deviation": statistics.stdev(losses),
    }


def _same_choice(one: FinishedTrial, other: FinishedTrial) -> bool:
    """Whether one repeats the other; under drawn budgets, what was repeated says which."""
    mine, theirs = one.planned, other.planned
    same = (mine.kind, mine.family, mine.group) == (theirs.kind, theirs.family, theirs.group)
    return same and (not mine.drawn or one.settings == other.settings)


def _report(
    resolved: ResolvedSearch,
    read: Sequence[_Read],
    table: Sequence[ReportRow],
    mattered: tuple[Importance, ...],
    *,
    threads: int,
    execution: Execution,
) -> Report:
    macs = sum(layer.tokens * layer.rows * layer.columns for layer in resolved.layers)
    results = tuple(_result(resolved, table, index, macs) for index in range(len(resolved.budgets)))
    kept = [row for row in table if not row.exceeds]
    points = [(r.validation_loss, r.cost / resolved.dense_cost, r.latency_ratio) for r in kept]
    reference = (r1, r2, r3) = pareto.reference_point(points)
    candidates = [row for row in table if row.kind == "candidate"]
    found = [row for row in table if row.kind != "reference"]
    return Report(
        quantity=resolved.quantity,
        budget=resolved.budget,
        dense_cost=resolved.dense_cost,
        budget_macs=_in_macs(resolved, resolved.budget, macs),
        eligible_dense_macs=macs,
        eligible=resolved.eligible,
        threads=threads,
        latency_batch=BATCH,
        execution=execution,
        other_load=max(one.timed.other_load for one in read),
        reference=table[0],
        baselines=tuple(row for row in table if row.kind == "baseline"),
        candidates=tuple(candidates),
        best_candidate=_least(candidates),
        winner=_least(found) or table[0],
        results=results,
        front=tuple(kept[index].number for index in pareto.front(points)),
        reference_point=(r1, r2, r3),
        hypervolume=pareto.hypervolume(points, reference),
        importances=mattered,
    )


def _importances(spec: SearchSpec, firsts: Sequence[FinishedTrial]) -> tuple[Importance, ...]:
    candidates = [trial for trial in firsts if trial.planned.kind == "candidate"]
    return tuple(
        one
        for index in sorted({trial.planned.budget_index for trial in candidates})
        for one in importances(
            spec,
            [trial for trial in candidates if trial.planned.budget_index == index],
            budget_index=index,
        )
    )


def _result(
    resolved: ResolvedSearch, table: Sequence[ReportRow], index: int, macs: int
) -> BudgetResult:
    budget = resolved.budgets[index]
    found = [row for row in table if row.kind != "reference" and _is_under(row, index, budget)]
    best = _least([row for row in found if row.kind == "candidate"])
    winner = _least(found)
    return BudgetResult(
        index=index,
        share=budget / resolved.dense_cost,
        budget=budget,
        budget_macs=_in_macs(resolved, budget, macs),
        best_candidate=None if best is None else best.number,
        winner=None if winner is None else winner.number,
    )


def _is_under(row: ReportRow, index: int, budget: int) -> bool:
    """Whether a network was made for a budget: for this one, or for a drawn one that is smaller."""
    return row.budget_index == index or (row.budget_index is None and (row.budget or 0) <= budget)


def _least(rows: Sequence[ReportRow]) -> ReportRow | None:
    kept = [row for row in rows if not row.exceeds]
    return min(kept, key=lambda row: row.validation_loss, default=None)


def _in_macs(resolved: ResolvedSearch, budget: int, macs: int) -> int:
    return budget if resolved.quantity == "macs" else int(budget / resolved.dense_cost * macs)
