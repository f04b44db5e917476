"""How fast a network trains here in each way there is: measured once, kept for the same search."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from models.checkpoint import write_text
from models.deployment import timing
from search.compute import Engine
from search.evaluation import alone
from search.forms import processor
from search.report import Execution, Ratio
from search.spec import SearchSpec
from search.training import Problem, weight_groups

FILE = "execution.json"  # in the reference's folder
PAIRS = 9
WARM_UP = 2
WIN = 0.9  # of a step's time: what gains less is not worth other numbers
# Generating code takes half a minute, and as long again to find out whether it pays.
LONG = 600.0  # seconds of the reference's training from which on that is tried


def decided(spec: SearchSpec) -> Execution | None:
    """Return how a search trains, if nothing has to be measured for it."""
    asked = spec.compute
    precision, compiled = asked.precision, asked.compile
    if spec.dataset is None:  # one matrix: rounding is what is to be learned, and a step is short
        precision = "float32" if precision == "auto" else precision
        compiled = False if compiled == "auto" else compiled
    if precision == "auto" or compiled == "auto":
        return None
    return Execution(
        device=asked.device, precision=precision, compiled=compiled, processes=asked.processes
    )


def choose(
    spec: SearchSpec,
    network: Callable[[], nn.Module],
    problem: Problem,
    *,
    cache: Path,
    folder: Path,
    threads: int,
) -> Execution:
    """Return how the search trains: as its reference's folder says, as the same search did, or now.

    `network` makes an untrained one. What was found is kept in the folder and in the cache.
    """
    kept = cache / "execution" / f"{execution_key(spec, threads=threads)}.json"
    found = decided(spec) or load_execution(folder) or _read(kept)
    if found is None:
        with alone(cache / "latency.lock"):
            found = _measured(spec, network, problem)
    for place in (folder / FILE, kept):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, found.model_dump_json(indent=2) + "\n")
    return found


def load_execution(folder: Path) -> Execution | None:
    """Read what `choose` has left in a reference's folder: nothing, where it never did."""
    return _read(folder / FILE)


def execution_key(spec: SearchSpec, *, threads: int) -> str:
    """Name a choice by all that a step's time depends on."""
    facts = spec.model_dump(mode="json", include={"model", "dataset", "training"}) | {
        "compute": spec.compute.model_dump(
            mode="json",
            include={"device", "precision", "compile", "processes", "reference_epochs"},
        ),
        "threads": threads,
        "torch": torch.__version__,
        "processor": processor(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _measured(spec: SearchSpec, network: Callable[[], nn.Module], problem: Problem) -> Execution:
    asked = spec.compute
    base = Execution(device=asked.device, processes=asked.processes)
    found = base if asked.precision == "auto" else _with(base, precision=asked.precision)
    if asked.precision == "auto":
        narrow = _with(base, precision="bfloat16")
        ratio, _ = race(network, problem, narrow, base)
        found = _with(narrow if _wins(ratio) else base, bfloat16_over_float32=ratio)
    if asked.compile != "auto":
        return _with(found, compiled=asked.compile)
    steps = asked.reference_epochs * problem.steps_per_epoch
    if steps * seconds_of_a_step(network, problem, found) < LONG:
        return found
    ratio, generation = race(network, problem, _with(found, compiled=True), found)
    spared = steps * seconds_of_a_step(network, problem, found) * (1 - ratio[0])
    pays = _wins(ratio) and spared > 2 * generation
    return _with(found, compiled=pays, compiled_over_eager=ratio)


def _with(execution: Execution, **changes: object) -> Execution:
    return execution.model_copy(update=changes)


def _wins(ratio: Ratio) -> bool:
    median, _, upper = ratio
    return median <= WIN and upper < 1


def race(
    network: Callable[[], nn.Module], problem: Problem, one: Execution, other: Execution
) -> tuple[Ratio, float]:
    """Return one way's time of a training step over the other's, in pairs, and its first seconds.

    The problem's network is not touched: each way trains a fresh one.
    """
    first, second = (stepper(network(), problem, way) for way in (one, other))
    began = time.perf_counter()
    first()
    generation = time.perf_counter() - began
    for _ in range(WARM_UP):
        first()
        second()
    found = timing([first() / second() for _ in range(PAIRS)])
    lower, upper = found.quartiles
    return (round(found.ratio, 3), round(lower, 3), round(upper, 3)), generation


def seconds_of_a_step(
    network: Callable[[], nn.Module], problem: Problem, execution: Execution
) -> float:
    """Return the least time of a few training steps."""
    step = stepper(network(), problem, execution)
    return min(step() for _ in range(WARM_UP + 1))


def stepper(network: nn.Module, problem: Problem, execution: Execution) -> Callable[[], float]:
    """Return what takes one training step, on the first batch, and says how long it took."""
    engine = Engine(execution, problem.engine.device)
    problem = replace(problem, engine=engine)
    batch = next(iter(problem.batches(0)))
    network.to(engine.device).train()
    optimiser = torch.optim.AdamW(weight_groups(network), lr=0.0, fused=True)

    def step() -> float:
        _finish(engine.device)
        began = time.perf_counter()
        with engine.generated(network):
            loss = problem.loss(network, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        _finish(engine.device)
        return time.perf_counter() - began

    return step


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _read(file: Path) -> Execution | None:
    try:
        return Execution.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        return None  # of another release
