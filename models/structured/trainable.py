"""What a layer of any kind tells training from scratch, and which layers a network has."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import nn


class TrainableLayer(nn.Module, ABC):
    """A layer as training from scratch sees it: matrix, convolution or mixture.

    It speaks for the layers it is made of, as a sum does for its parts.
    """

    @abstractmethod
    def fan_ins(self) -> dict[str, float]:
        """For every trainable tensor but the bias, how many numbers each of its outputs sums up.

        The learning rates of training from scratch follow from it; a tensor that only scales has 1,
        and one that stacks several factors of a product has the sum of theirs.
        """

    @abstractmethod
    def dense_fan_in(self) -> int:
        """How many numbers each output of the dense layer in this one's place sums up."""

    @abstractmethod
    def core_count(self) -> int:
        """How many of the tensors with a fan-in move one output."""


def outermost_layers(network: nn.Module) -> Iterator[tuple[str, TrainableLayer]]:
    """Every layer of a network with its name, without those that other layers are made of."""
    seen: set[nn.Module] = set()
    for name, module in network.named_modules():
        if isinstance(module, TrainableLayer) and module not in seen:
            seen.update(module.modules())
            yield name, module
