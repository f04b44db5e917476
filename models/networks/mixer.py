"""An MLP-Mixer: perceptrons over the patches of each channel, then over the channels of each patch.

Tolstikhin et al., NeurIPS 2021, arXiv 2105.01601.
"""

from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.networks.factory import Linear
from models.networks.patches import patches
from models.spec import LayerSpec, Mixer, NetworkSpec


@final
class MixerNetwork(nn.Module):
    """Images through patch embedding and mixing blocks to class scores."""

    def __init__(self, spec: NetworkSpec, model: Mixer, linear: Linear) -> None:
        super().__init__()
        layers = {layer.name: layer for layer in spec.layers}
        self.patch = model.patch
        self.embed = linear(layers["embed"])
        self.blocks = nn.ModuleList(
            _Block(model, layers, f"blocks.{number}", linear) for number in range(model.depth)
        )
        self.norm = nn.LayerNorm(model.width)
        self.head = linear(layers["head"])

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Class scores."""
        x = self.embed(patches(images, self.patch))
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x).mean(1))
        return scores


@final
class _Block(nn.Module):
    """x + (mixture of tokens)(norm(x)), then x + (mixture of channels)(norm(x))."""

    def __init__(
        self, model: Mixer, layers: dict[str, LayerSpec], name: str, linear: Linear
    ) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(model.width)
        self.token_up = linear(layers[f"{name}.token_up"])
        self.token_down = linear(layers[f"{name}.token_down"])
        self.mlp_norm = nn.LayerNorm(model.width)
        self.up = linear(layers[f"{name}.up"])
        self.down = linear(layers[f"{name}.down"])

    def forward(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        across = self.token_norm(x).mT
        x = x + self.token_down(functional.gelu(self.token_up(across))).mT
        y: Tensor = x + self.down(functional.gelu(self.up(self.mlp_norm(x))))
        return y
