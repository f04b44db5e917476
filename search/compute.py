"""On what a network is trained: device, precision, generated code, and with which processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from search.data import Data, Split
from search.recipe import Device
from search.report import PLAIN, Execution
from search.team import Alone, Team

CPU = torch.device("cpu")


class DeviceMissing(Exception):
    """A device that torch has not got here: which, and what to do."""

    def __init__(self, device: Device, sentence: str) -> None:
        super().__init__(f"compute.device is {device}, but {sentence}")


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything that a training runs on; without arguments, as plainly as torch does."""

    execution: Execution = PLAIN
    device: torch.device = CPU
    team: Team = field(default_factory=Alone)

    def forward(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return the network's outputs, in float32 even where the products before are not."""
        if self.execution.precision == "float32":
            alike: Tensor = network(inputs)
            return alike
        with torch.autocast(self.device.type, torch.bfloat16):
            outputs: Tensor = network(inputs)
        return outputs.float()

    @contextmanager
    def generated(self, network: nn.Module) -> Iterator[None]:
        """Run the network by generated code within the block, if that was chosen.

        Its hooks run as they are. What is called outside, as an evaluation with another batch, does
        not generate code once more.
        """
        if not self.execution.compiled:
            yield
            return
        # Kept with the network, for every step enters this block.
        known = network.__dict__.setdefault("_generated", {})
        if "forward" not in known:
            known["forward"] = torch.compile(network.forward, dynamic=False)
        network.__dict__["forward"] = known["forward"]
        try:
            yield
        finally:
            del network.__dict__["forward"]


HERE = Engine()


def place(data: Data, device: torch.device) -> Data:
    """Return the data on a device."""
    train, validation, test = (
        Split(moved(split.inputs, device), moved(split.targets, device))
        for split in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def find_device(device: Device, *, rank: int = 0, processes: int = 1) -> torch.device:
    """Return the device that is asked for, of several the one for this process.

    Raises DeviceMissing.
    """
    match device:
        case "cpu":
            return CPU
        case "mps":
            if not torch.backends.mps.is_available():
                raise DeviceMissing(
                    device, f"{_HERE} has no Apple GPU; choose cpu, or {_ELSEWHERE}"
                )
            if processes > 1:
                raise DeviceMissing(
                    device, "it has one for one process; set compute.processes to 1"
                )
            return torch.device("mps")
        case "cuda":
            found = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if not found:
                raise DeviceMissing(device, f"{_HERE} has no CUDA; choose cpu, or {_ELSEWHERE}")
            if found < processes:
                raise DeviceMissing(
                    device,
                    f"the worker has {found} and {processes} processes need one each; "
                    f"set compute.processes to at most {found}",
                )
            return torch.device("cuda", rank)


_HERE = "the worker's torch"
_ELSEWHERE = "run the search on a worker that has one"


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on a device, as a view of as few numbers as it is here.

    The windows over a text overlap: copied one by one they would be a thousand times the text.
    """
    if values.device == device or not values.numel():
        return values.to(device)
    ends = zip(values.shape, values.stride(), strict=True)
    count = 1 + sum((length - 1) * stride for length, stride in ends)
    if count >= values.numel():
        return values.to(device)
    flat = values.as_strided((count,), (1,)).to(device)
    return flat.as_strided(values.shape, values.stride(), 0)
