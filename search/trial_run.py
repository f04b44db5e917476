"""What one trial works with, in this process of those it may have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from models.spec import MatrixTask
from search.clock import Clock
from search.compute import Engine, find_device, place
from search.data import Data, load_data
from search.orders import Orders, start
from search.pace import decided, load_execution
from search.plan import PlannedTrial
from search.progress import Progress
from search.reference import Reference
from search.report import Execution
from search.resolved import ResolvedSearch, resolve
from search.spec import SearchSpec
from search.team import Alone, Several, Team, joining, leading
from search.time_budget import make_clock, time_layers
from search.training import CHECKPOINT, Course, Problem
from search.trial import FinishedTrial


@dataclass(frozen=True, slots=True)
class TrialRun:
    """The orders, and what they come to: the search under the trial's budget, data on the device.

    `history` holds at least the ended trials that this one waited for. `threads` are those of all
    its processes together; `cache` is the first process' alone.
    """

    orders: Orders
    history: Sequence[FinishedTrial]
    resolved: ResolvedSearch
    data: Data
    progress: Progress
    device: torch.device
    team: Callable[[Execution], Team]
    clock: Clock | None
    threads: int
    cache: Path | None

    @property
    def spec(self) -> SearchSpec:
        """What the search is."""
        return self.orders.spec

    @property
    def planned(self) -> PlannedTrial:
        """Which trial of the search it is."""
        return self.orders.planned

    @property
    def folder(self) -> Path:
        """Where its checkpoint and its export lie."""
        return self.orders.folder

    @property
    def kept(self) -> Path:
        """The cache, of the process that speaks for all."""
        assert self.cache is not None, "only the first process reads and writes the cache"
        return self.cache

    @property
    def seed(self) -> int:
        """Repeats train with other seeds, on the same split."""
        return self.spec.seed + 1_000_003 * self.planned.repeat

    @property
    def reference_folder(self) -> Path:
        """Where the search's reference has left its network, answers, profile and times."""
        return reference_folder(self.history)

    @property
    def execution(self) -> Execution:
        """How the search trains: what its reference has chosen, if that was to be chosen."""
        asked = self.spec.compute
        return (
            decided(self.spec)
            or load_execution(self.reference_folder)
            or Execution(device=asked.device, processes=asked.processes)
        )

    def engine(self, execution: Execution) -> Engine:
        """Return what trains in this way, here."""
        return Engine(execution, self.device, self.team(execution))

    def course(self, reference: Reference, *, from_scratch: bool) -> Course:
        """Return how a network is trained that was made from the reference, or drawn anew."""
        recipe, known = self.spec.training, reference.teacher
        problem = Problem(
            self.data,
            None if known is None else known.to(self.device),
            recipe,
            recipe.learning_rate if from_scratch else recipe.tuning_rate,
            self.seed,
            self.engine(self.execution),
        )
        epochs, checkpoint = self.spec.compute.epochs, self.folder / CHECKPOINT
        return Course(problem, epochs, checkpoint, self.progress)


def prepare(
    orders: Orders,
    history: Sequence[FinishedTrial],
    progress: Progress,
    *,
    rank: int = 0,
    port: int = 0,
    threads: int,
    cache: Path | None = None,
) -> TrialRun:
    """Load the data and resolve the search in the process of a rank; another's first is at `port`.

    Raises DataMissing, DeviceMissing, SpecError and, under a budget in time, what `time_layers`
    raises.
    """
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
            known=None if orders.planned.kind == "reference" else reference_folder(history),
            folder=orders.folder,
        )
    return TrialRun(
        orders=orders,
        history=history,
        resolved=resolved,
        data=place(data, device),
        progress=progress,
        device=device,
        team=team,
        clock=clock,
        threads=threads,
        cache=cache,
    )


def reference_folder(history: Sequence[FinishedTrial]) -> Path:
    """Return the folder of a search's reference, which every other trial waits for."""
    for trial in history:
        if trial.planned.kind == "reference" and trial.folder is not None:
            return trial.folder
    raise AssertionError("a trial was started before its reference was complete")
