"""One matrix as a network: y = W x."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from models.networks.factory import Linear
from models.spec import NetworkSpec


@final
class MatrixNetwork(nn.Module):
    """The layer called `matrix`, and nothing around it."""

    def __init__(self, spec: NetworkSpec, linear: Linear) -> None:
        super().__init__()
        (layer,) = spec.layers
        self.matrix = linear(layer)

    def forward(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch rows"]:
        """W x."""
        y: Tensor = self.matrix(x)
        return y
