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
from search.compute import CPU
from search.data import Data
from search.evaluation import BATCH, Latency, deployed, latency, network_cost
from search.forms import forms_file
from search.plan import PlannedTrial
from search.progress import Progress, Update
from search.report import PLAIN, Execution, Report, ReportRow
from search.spec import ResolvedSearch, SearchSpec
from search.training import evaluate, stop_if_asked
from search.trial import FinishedTrial


@dataclass(frozen=True, slots=True)
class _Read:
    """An exported network as its file has it, measured on the validation part, and deployed."""

    planned: PlannedTrial
    folder: Path
    network: nn.Module
    exported: NetworkSpec
    deployed: DeployedNetwork
    loss: float
    accuracy: float | None
    timed: Latency


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

    Beside each network lie then the forms in which its layers run. Those that this search, or the
    same one earlier, has chosen are in `cache`, with the machine-wide lock. Validation chooses the
    best candidate and the winner; only then is the test part read.
    """
    lock, kept = cache / "latency.lock", forms_file(spec, cache=cache, threads=threads)
    complete = [trial for trial in history if trial.state == "COMPLETE"]
    firsts = [trial for trial in complete if not trial.planned.repeat]
    dense = load_network(_exported(firsts[0])).to(device)
    read = []
    for index, trial in enumerate(firsts):
        stop_if_asked(progress)
        progress.report(Update("measurement", index, len(firsts), unit="network"))
        read.append(_read(trial, data, dense, lock=lock, kept=kept, seed=spec.seed))
    candidates = [one for one in read if one.planned.kind == "candidate"]
    best = min(candidates, key=lambda one: one.loss, default=None)
    rows = {
        one.planned.number: _row(spec, resolved, data, one, is_best=one is best)
        | _spread(one, complete, is_best=one is best)
        for one in read
    }
    report = _report(resolved, read, best, rows, threads=threads, execution=execution)
    for one in read:
        if one is best or one.planned.number == report.winner.number:
            # Programs are for the CPU, where everybody can load them.
            network, inputs = load_network(one.folder), data.validation.inputs[:2].cpu()
            fast = with_forms(network, one.deployed.forms)
            export(one.folder, one.exported, network, inputs, deployed=fast)
    return report


def _exported(trial: FinishedTrial) -> Path:
    assert trial.folder is not None, "a complete trial has its export"
    return trial.folder / "export"


def _read(
    trial: FinishedTrial, data: Data, dense: nn.Module, *, lock: Path, kept: Path, seed: int
) -> _Read:
    folder, inputs = _exported(trial), data.validation.inputs
    network, exported = load_network(folder).to(inputs.device), load_spec(folder)
    loss, accuracy = evaluate(network, data, data.validation)
    generator = torch.Generator().manual_seed(seed)
    fast = deployed(network, exported, inputs, lock=lock, kept=kept, generator=generator)
    save_forms(folder, fast.forms)
    timed = latency(fast.network, dense, inputs, lock=lock)
    return _Read(trial.planned, folder, network, exported, fast, loss, accuracy, timed)


def _row(
    spec: SearchSpec, resolved: ResolvedSearch, data: Data, one: _Read, *, is_best: bool
) -> dict[str, object]:
    test_loss, test_accuracy = None, None
    if is_best or one.planned.kind != "candidate":
        test_loss, test_accuracy = evaluate(one.network, data, data.test)
    is_reference = one.planned.kind == "reference"
    return asdict(network_cost(one.exported, resolved)) | {
        "number": one.planned.number,
        "name": one.planned.name,
        "kind": one.planned.kind,
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


def _spread(one: _Read, complete: Sequence[FinishedTrial], *, is_best: bool) -> dict[str, object]:
    """Return the number of seeds and the deviation of the validation loss over them."""
    again = [
        trial.validation_loss
        for trial in complete
        if trial.planned.repeat
        and trial.validation_loss is not None
        and (trial.planned.kind, trial.planned.family) == (one.planned.kind, one.planned.family)
        and (is_best or one.planned.kind == "baseline")
    ]
    if not again:
        return {}
    losses = [one.loss, *again]
    return {
        "repeats": len(losses),
        "validation_loss_mean": statistics.fmean(losses),
        "validation_loss_deviation": statistics.stdev(losses),
    }


def _report(
    resolved: ResolvedSearch,
    read: Sequence[_Read],
    best: _Read | None,
    rows: dict[int, dict[str, object]],
    *,
    threads: int,
    execution: Execution,
) -> Report:
    table = [ReportRow.model_validate(row) for row in rows.values()]
    found = [row for row in table if row.kind != "reference"]
    macs = sum(layer.tokens * layer.rows * layer.columns for layer in resolved.layers)
    share = resolved.budget / resolved.dense_cost
    return Report(
        quantity=resolved.quantity,
        budget=resolved.budget,
        dense_cost=resolved.dense_cost,
        budget_macs=resolved.budget if resolved.quantity == "macs" else int(share * macs),
        eligible_dense_macs=macs,
        eligible=resolved.eligible,
        threads=threads,
        latency_batch=BATCH,
        execution=execution,
        other_load=max(one.timed.other_load for one in read),
        reference=table[0],
        baselines=tuple(row for row in table if row.kind == "baseline"),
        candidates=tuple(row for row in table if row.kind == "candidate"),
        best_candidate=next((r for r in table if best and r.number == best.planned.number), None),
        winner=min(found or table, key=lambda row: row.validation_loss),
    )
