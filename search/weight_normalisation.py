"""Weight normalisation: no tensor of a structured layer outgrows its initial size but by its gain.

M becomes g M / max(1, rms(M) / s), with a learned gain g that begins at 1 and s the rms of M at the
beginning. It keeps activations from growing where products of tensors grow faster than each of them
(Qiu et al., ICML 2024, arXiv 2406.06248).
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.structured.trainable import TrainableLayer, outermost_layers


@final
class RootMeanSquareCeiling(nn.Module):
    """The parametrisation of one tensor."""

    size: Tensor

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        size = root_mean_square(tensor.detach())
        if not size > 0:
            raise ValueError("the tensor is all zeros, but its initial size is what normalises it")
        self.register_buffer("size", size)
        self.gain = nn.Parameter(torch.ones_like(size))

    def forward(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Scale down what is larger than at the beginning, and by the gain."""
        growth = root_mean_square(tensor) / self.size
        return self.gain * tensor / growth.clamp(min=1)


def root_mean_square(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The size of a typical entry, with a gradient at zero too."""
    norm: Tensor = torch.linalg.vector_norm(tensor)
    return norm / math.sqrt(tensor.numel())


def normalise_weights(network: nn.Module) -> None:
    """Put every tensor but the biases of a network's initialised layers under its ceiling.

    What the network computes stays the same. A tensor that begins with zeros, as a router does, has
    no size to keep to, and is left alone, as one that is under a ceiling. Raises ValueError for a
    layer of nothing but zeros, as a silent head is: it is normalised before it is silenced.
    """
    found: list[tuple[nn.Module, str, nn.Parameter]] = []
    for layer_name, layer in outermost_layers(network):
        tensors = {path: trainable_tensor(layer, path) for path in layer.fan_ins()}
        loud = [path for path, tensor in tensors.items() if tensor.any()]
        if not loud and any(tensor.numel() for tensor in tensors.values()):
            raise ValueError(
                f"{layer_name or 'the layer'} is all zeros, but what is normalised has a size at "
                "the beginning: draw it first, and silence it afterwards"
            )
        found += [(*_owner(layer, path), tensors[path]) for path in loud]
    for owner, name, tensor in found:
        if not parametrize.is_parametrized(owner, name):
            parametrize.register_parametrization(owner, name, RootMeanSquareCeiling(tensor))


def bake_weights(network: nn.Module) -> None:
    """Store what the normalised tensors amount to, and leave plain layers that compute the same."""
    for _, layer in list(outermost_layers(network)):
        for path in layer.fan_ins():
            owner, name = _owner(layer, path)
            if parametrize.is_parametrized(owner, name):
                parametrize.remove_parametrizations(owner, name)


def trainable_tensor(layer: TrainableLayer, path: str) -> nn.Parameter:
    """The tensor of a layer that an optimiser changes, hidden by a ceiling or not."""
    owner, name = _owner(layer, path)
    if parametrize.is_parametrized(owner, name):
        return owner.get_submodule(f"parametrizations.{name}").get_parameter("original")
    return owner.get_parameter(name)


def _owner(layer: TrainableLayer, path: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, which for one of several factors is not the layer itself."""
    inside, _, name = path.rpartition(".")
    return layer.get_submodule(inside), name
