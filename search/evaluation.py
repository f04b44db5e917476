"""What an exported network costs, and how long it takes beside the dense one."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from models.cost import layer_cost, network_macs, network_parameters, smallest_step
from models.deployment import DeployedNetwork, Timing, deploy_network, seconds_taken, timing
from models.spec import NetworkSpec
from search.forms import load_choices, save_choices
from search.resolved import ResolvedSearch

PAIRS = 40  # timed pairs for each network
BATCH = 64  # inputs of one timed pass
QUIET = 0.1  # share of the machine that others may use before the measurement is repeated
TRIES = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs of the eligible layers and of the whole network."""

    cost: int
    smallest_step: int | None  # in a budget that is counted
    macs: int
    parameters: int
    network_macs: int
    network_parameters: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Time over the dense network's, and how much of the machine others used meanwhile."""

    over_dense: Timing
    other_load: float


def network_cost(
    network: NetworkSpec, resolved: ResolvedSearch, times: Mapping[str, int] | None = None
) -> Cost:
    """Count what a network costs, from its exported spec; or add up the `times` of its layers."""
    layers = [layer for layer in network.layers if layer.name in resolved.eligible]
    if resolved.quantity == "latency":
        assert times is not None, "what is timed is not counted"
        cost, steps = sum(times.values()), []
    else:
        cost = sum(layer_cost(layer, resolved.quantity) for layer in layers)
        steps = [smallest_step(layer, resolved.quantity) for layer in layers]
    return Cost(
        cost=cost,
        smallest_step=min((step for step in steps if step is not None), default=None),
        macs=sum(layer_cost(layer, "macs") for layer in layers),
        parameters=sum(layer_cost(layer, "parameters") for layer in layers),
        network_macs=network_macs(network),
        network_parameters=network_parameters(network),
    )


def deployed(
    network: nn.Module,
    spec: NetworkSpec,
    inputs: Tensor,
    *,
    lock: Path,
    kept: Path,
    generator: torch.Generator,
) -> DeployedNetwork:
    """Choose every layer's fastest form for the batch whose latency is measured, alone as well.

    What the file `kept` has is not measured again, and what is measured goes there.
    """
    with alone(lock):
        found = deploy_network(
            network,
            spec,
            batch=len(inputs[:BATCH]),
            generator=generator,
            chosen=load_choices(kept),
        )
        save_choices(kept, found.chosen)
    return found


def latency(network: nn.Module, dense: nn.Module, inputs: Tensor, *, lock: Path) -> Latency:
    """Time both networks in turns, alone on this machine as far as a lock and patience reach."""
    with alone(lock):
        best = _timed(network, dense, inputs[:BATCH])
        for _ in range(TRIES - 1):
            if best.other_load <= QUIET:
                break
            again = _timed(network, dense, inputs[:BATCH])
            best = min(best, again, key=lambda measured: measured.other_load)
    return best


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold the machine-wide lock under which one process at a time measures."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@torch.no_grad()
def _timed(network: nn.Module, dense: nn.Module, inputs: Tensor) -> Latency:
    for _ in range(3):
        seconds_taken(network, inputs)
        seconds_taken(dense, inputs)
    before = _Usage.now()
    ratios = [seconds_taken(network, inputs) / seconds_taken(dense, inputs) for _ in range(PAIRS)]
    return Latency(timing(ratios), _Usage.now().others_since(before))


@dataclass(frozen=True, slots=True)
class _Usage:
    """CPU seconds that the machine and this process have used."""

    machine: float
    own: float
    available: float

    @staticmethod
    def now() -> "_Usage":
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        available = sum(machine)
        return _Usage(available - machine.idle, own.user + own.system, available)

    def others_since(self, before: "_Usage") -> float:
        """Return the share of the machine that other processes used meanwhile."""
        busy = (self.machine - before.machine) - (self.own - before.own)
        return max(0.0, busy / max(1e-9, self.available - before.available))
