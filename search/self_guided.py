"""Self-guided training: a dense matrix leads a structured layer at first, and is gone in the end.

y = s G x + (1 - s) W x + b, with s falling from 1 to 0 along a half cosine, and a guide G that is W
at first: the start computes what the structured layer does, and learns as the dense one (Wei,
Moalla, Pascanu & Gulcehre, NeurIPS 2024, arXiv 2406.16450).
"""

import math
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured import DenseLinear, StructuredLinear
from models.structured.trainable import outermost_layers
from models.structures.base import check_range


@final
class SelfGuided(nn.Module):
    """A structured layer, and the dense guide whose `share` of the output it takes over."""

    def __init__(self, layer: StructuredLinear) -> None:
        super().__init__()
        self.layer = layer
        self.guide = nn.Parameter(layer.to_dense().detach().clone())
        self.share = 1.0

    def forward(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Both products, weighted; without a share the guide's is not computed."""
        own: Tensor = self.layer(x)
        if self.share == 0:
            return own
        led = functional.linear(x, self.guide, self.layer.bias)
        return self.share * led + (1 - self.share) * own


def guide_share(step: int, steps: int) -> float:
    """From 1 along a half cosine to exactly 0, reached after `steps` and kept.

    ValueError for less than one step, and before the first.
    """
    check_range("steps", steps, low=1, where="a guide")
    check_range("step", step, low=0, where="a guide")
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


@final
class Guidance:
    """Puts a guide beside every structured matrix of a network, lets it fade, and takes it out.

    A sum of structures has one guide; convolutions and mixtures none. The guides are parameters
    of the network until then, so that checkpoints hold them; make an optimiser after this.
    ValueError for less than one step.
    """

    def __init__(self, network: nn.Module, *, steps: int) -> None:
        check_range("steps", steps, low=1, where="a guide")
        if steps != int(steps):
            raise ValueError(f"steps is {steps}, but a guide admits whole numbers")
        self.network = network
        self.steps = steps
        self.guided = {
            name: SelfGuided(layer)
            for name, layer in outermost_layers(network)
            if isinstance(layer, StructuredLinear) and not isinstance(layer, DenseLinear)
        }
        for name, guided in self.guided.items():
            network.set_submodule(name, guided)

    def before_step(self, step: int) -> None:
        """Give the guides their share at this step, which depends on nothing else."""
        share = guide_share(step, self.steps)
        for guided in self.guided.values():
            guided.share = share

    def finish(self) -> None:
        """Leave the plain structured layers."""
        for name, guided in self.guided.items():
            self.network.set_submodule(name, guided.layer)
