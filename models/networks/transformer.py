"""A pre-norm transformer block: attention to all tokens, or to those before, then a perceptron."""

from typing import final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.networks.factory import Linear
from models.spec import LayerSpec


@final
class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)); its layers are `name.qkv` and so on."""

    def __init__(
        self,
        layers: dict[str, LayerSpec],
        name: str,
        linear: Linear,
        *,
        width: int,
        heads: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = linear(layers[f"{name}.qkv"])
        self.proj = linear(layers[f"{name}.proj"])
        self.mlp_norm = nn.LayerNorm(width)
        self.up = linear(layers[f"{name}.up"])
        self.down = linear(layers[f"{name}.down"])

    def forward(
        self, x: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """The tokens after both halves."""
        x = x + self.proj(self.attend(self.attention_norm(x)))
        y: Tensor = x + self.down(functional.gelu(self.up(self.mlp_norm(x))))
        return y

    def attend(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Every token's mixture of the values of all tokens, or of those up to itself."""
        query, key, value = rearrange(
            self.qkv(x),
            "batch tokens (three heads size) -> three batch heads tokens size",
            three=3,
            heads=self.heads,
        )
        mixed = attention(query, key, value, causal=self.causal)
        return rearrange(mixed, "batch heads tokens size -> batch tokens (heads size)")


def attention(
    query: Float[Tensor, "batch heads tokens size"],
    key: Float[Tensor, "batch heads tokens size"],
    value: Float[Tensor, "batch heads tokens size"],
    *,
    causal: bool,
) -> Float[Tensor, "batch heads tokens size"]:
    """Mix the values by softmax(q k^T / sqrt(size)), in the form that is quick for this dtype."""
    if query.device.type != "cpu":
        return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        if query.dtype.itemsize > 2:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        # Here the fused function's backward pass is ten times slower in bfloat16 than in float32,
        # and these products twice as quick as either (4 heads, 128 tokens).
        barred = query.new_zeros(query.shape[2], key.shape[2])
        if causal:
            barred = barred.fill_(-torch.inf).triu(1)
        scale = query.shape[3] ** -0.5
        scores = torch.baddbmm(barred, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
        mixed = scores.softmax(-1) @ value.flatten(0, 1)
        return mixed.view_as(query)
