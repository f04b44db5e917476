"""A multilayer perceptron: linear layers with ReLU between them."""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.networks.factory import Linear
from models.spec import NetworkSpec


@final
class MlpNetwork(nn.Module):
    """Images, flattened, through hidden layers to class scores."""

    def __init__(self, spec: NetworkSpec, linear: Linear) -> None:
        super().__init__()
        *hidden, head = spec.layers
        self.layers = nn.ModuleList(linear(layer) for layer in hidden)
        self.head = linear(head)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class scores."""
        x = images.flatten(1)
        for layer in self.layers:
            x = functional.relu(layer(x))
        scores: Tensor = self.head(x)
        return scores
