"""One training on several processes: each has a part of every batch, and all take the same step."""

import abc
import os
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from search.trial import MemberLost

HERE = "127.0.0.1"
ARRIVED = "arrived"  # the store's count of processes that have come
# How long the first process waits for another's numbers: who arrived and died cannot be told from
# who is slow before all have met. The others wait longer, for the first also evaluates and writes.
STEP_PATIENCE = timedelta(minutes=10)
PATIENCE = timedelta(hours=2)
BEAT = 0.05  # seconds between two looks at processes that are starting
GRACE = 5.0  # seconds in which a process ends by itself, or is seen to have ended

# Brings all processes together for a block; it is called with what raises to stop the waiting.
Meeting = Callable[[Callable[[], None]], AbstractContextManager[Store]]
# Starts the process of a rank, which shall come to a port, and reads nothing more than its orders.
Start = Callable[[int, int], "subprocess.Popen[bytes]"]


class Team(abc.ABC):
    """The processes of a training: `rank` numbers this one, and the first, 0, leads."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process evaluates, writes checkpoints and speaks for all."""
        return self.rank == 0

    @abc.abstractmethod
    def assembled(self, check: Callable[[], None]) -> AbstractContextManager[None]:
        """Hold the processes together within a block.

        `check` is called while they gather, and may raise. Raises MemberLost and, in all processes
        but the first, Dismissed where the block ends.
        """

    @abc.abstractmethod
    def share(self, network: nn.Module, *, some_rest: bool) -> nn.Module:
        """Wrap a network so that its gradients are the mean over all processes.

        `some_rest` says that a step may leave parameters out.
        """

    @abc.abstractmethod
    def part(self, batch: Tensor) -> tuple[Tensor, float]:
        """Return this process' part of a batch, and the factor on its mean loss.

        The mean over the processes of factor times loss is the mean loss of the whole batch.
        """

    @abc.abstractmethod
    def agree(self, loss: Tensor, *, stop: bool) -> tuple[Tensor, bool]:
        """Return the mean of all losses, and whether the first process was asked to stop."""

    @abc.abstractmethod
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to its mean over all processes."""

    @abc.abstractmethod
    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to what the first process has."""


@final
class Alone(Team):
    """A team of one, which asks nobody."""

    rank = 0
    size = 1

    @contextmanager
    def assembled(self, check: Callable[[], None]) -> Iterator[None]:  # noqa: ARG002
        """There is nobody to wait for."""
        yield

    def share(self, network: nn.Module, *, some_rest: bool) -> nn.Module:  # noqa: ARG002
        """Return the network itself."""
        return network

    def part(self, batch: Tensor) -> tuple[Tensor, float]:
        """Return the whole batch."""
        return batch, 1.0

    def agree(self, loss: Tensor, *, stop: bool) -> tuple[Tensor, bool]:
        """Return what is given."""
        return loss, stop

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Leave them."""

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Leave them."""


@final
class Several(Team):
    """Some processes of one machine, of which each knows what all have found."""

    def __init__(self, rank: int, size: int, *, device: torch.device, meeting: Meeting) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        self._meeting = meeting

    @contextmanager
    def assembled(self, check: Callable[[], None]) -> Iterator[None]:
        """Meet, and form a process group for the block."""
        # Nothing of this is meant for another machine, whatever this one's name resolves to.
        loopback = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        try:
            with self._meeting(check) as store:
                dist.init_process_group(
                    "nccl" if self._device.type == "cuda" else "gloo",
                    store=store,
                    rank=self.rank,
                    world_size=self.size,
                    timeout=STEP_PATIENCE if self.leads else PATIENCE,
                )
                yield
        finally:
            # Not before the others have ended: they would take it for a loss.
            if dist.is_initialized():
                dist.destroy_process_group()

    def share(self, network: nn.Module, *, some_rest: bool) -> nn.Module:
        """Let DistributedDataParallel average what each backward pass finds."""
        with warnings.catch_warnings():
            # Its new name is not in the oldest torch that we take.
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")
            return DistributedDataParallel(
                network, broadcast_buffers=False, find_unused_parameters=some_rest
            )

    def part(self, batch: Tensor) -> tuple[Tensor, float]:
        """Deal the batch out, one sample each in turn."""
        mine = batch[self.rank :: self.size]
        if not len(mine):
            return batch[:1], 0.0  # all have to take part in the backward pass
        return mine, self.size * len(mine) / len(batch)

    def agree(self, loss: Tensor, *, stop: bool) -> tuple[Tensor, bool]:
        """Send the loss and the wish in one message."""
        asked = float(stop and self.leads)
        told = torch.stack([loss.detach(), torch.full_like(loss.detach(), asked)])
        dist.all_reduce(told)
        return told[0] / self.size, bool(told[1] > 0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Add all up in one message."""
        self._at_once(tensors, dist.all_reduce, 1 / self.size)

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Take the first process' numbers, in one message."""
        self._at_once(tensors, lambda sent: dist.broadcast(sent, src=0), 1.0)

    @staticmethod
    @torch.no_grad()
    def _at_once(
        tensors: Sequence[Tensor], send: Callable[[Tensor], object], factor: float
    ) -> None:
        if not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        send(flat)
        parts = (flat * factor).split([tensor.numel() for tensor in tensors])
        for tensor, values in zip(tensors, parts, strict=True):
            tensor.copy_(values.view_as(tensor))


class Dismissed(Exception):
    """The training is over, and with it what is asked of all processes but the first."""


def joining(port: int) -> Meeting:
    """Meet where the first process waits."""

    @contextmanager
    def meeting(_check: Callable[[], None]) -> Iterator[Store]:
        store = TCPStore(HERE, port, is_master=False, timeout=PATIENCE)
        store.add(ARRIVED, 1)
        yield store
        raise Dismissed

    return meeting


def leading(size: int, start: Start) -> Meeting:
    """Start the others and wait for them. Whatever ends the block ends them too."""

    @contextmanager
    def meeting(check: Callable[[], None]) -> Iterator[Store]:
        store = TCPStore(HERE, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        others: list[subprocess.Popen[bytes]] = []
        try:
            others += [start(rank, store.port) for rank in range(1, size)]
            while store.add(ARRIVED, 0) < size - 1:
                check()
                _raise_if_lost(others)
                time.sleep(BEAT)
            yield store
        except RuntimeError as error:  # all that torch says of a connection that is gone
            _raise_if_lost(others, seconds=GRACE, cause=error)
            raise
        finally:
            _end(others)

    return meeting


def _raise_if_lost(
    others: Sequence["subprocess.Popen[bytes]"],
    *,
    seconds: float = 0,
    cause: Exception | None = None,
) -> None:
    """Raise MemberLost if a process has ended, or does so within some seconds."""
    end = time.monotonic() + seconds
    while True:
        for rank, process in enumerate(others, start=1):
            if process.poll() is not None:
                raise MemberLost(rank, len(others) + 1, process.returncode) from cause
        if time.monotonic() >= end:
            return
        time.sleep(BEAT)


def _end(others: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End all: they listen for the end of what they read."""
    for process in others:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
    for process in others:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
