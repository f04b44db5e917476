"""BTT mixture of experts: y_p = sum_s g_s sum_g L_spg (R_spg x_g) over the chosen experts s, + b.

With h = A x of the linear router, the chosen s have the largest h_s, and g is softmax(h) over them.
"""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import add_bias, draw_normal, real_columns
from models.structured.btt import BttLinear
from models.structured.checks import (
    check_bias,
    check_generator,
    check_numbers,
    check_target,
    check_width,
)
from models.structured.routing import Layout, auxiliary_loss, lay_out, route
from models.structured.trainable import TrainableLayer
from models.structures import Btt
from models.structures.btt_moe import BttMoe

# Inputs of one expert that are multiplied together. More would leave more room at the tiles' ends,
# fewer would copy the experts' numbers more often.
LONGEST_TILE = 64


@final
class BttMoeLinear(TrainableLayer):
    """A layer of `rows x columns` whose inputs each use some of the experts, and only those."""

    def __init__(
        self,
        spec: BttMoe,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_numbers(bias=bias, dtype=dtype)
        spec.check_fits(rows=rows, columns=columns)
        self.spec, self.rows, self.columns = spec, rows, columns
        groups, bands, rank = spec.input_blocks, spec.output_blocks, spec.rank
        height, width = spec.block_sides(rows=rows, columns=columns)
        self.router = nn.Parameter(torch.zeros(spec.experts, columns, dtype=dtype))
        self.input_factor = nn.Parameter(
            torch.zeros(spec.experts, groups, bands * rank, width, dtype=dtype)
        )
        self.output_factor = nn.Parameter(
            torch.zeros(spec.experts, bands, height, groups * rank, dtype=dtype)
        )
        self.bias = nn.Parameter(torch.zeros(rows, dtype=dtype)) if bias else None

    @classmethod
    def from_dense(
        cls,
        weight: Float[Tensor, "rows columns"],
        spec: BttMoe,
        *,
        bias: Float[Tensor, " rows"] | None = None,
        second_moment: Float[Tensor, "columns columns"] | None = None,
    ) -> "BttMoeLinear":
        """The slices of the nearest BTT, with a router of zeros: to be trained from there.

        Equal gates are 1 / active, so the experts are scaled by `active`: those chosen then sum up
        to their part of the BTT.
        """
        check_target(weight, second_moment)
        rows, columns = weight.shape
        check_bias(bias, rows=rows)
        layer = cls(spec, rows=rows, columns=columns, bias=bias is not None, dtype=weight.dtype)
        layer = layer.to(weight.device)
        whole = BttLinear.from_dense(
            weight,
            Btt(
                input_blocks=spec.input_blocks,
                output_blocks=spec.output_blocks,
                rank=spec.experts * spec.rank,
            ),
            second_moment=second_moment,
        )
        slices = (spec.experts, spec.rank)
        right = whole.input_factor.unflatten(1, (spec.output_blocks, *slices)).movedim(2, 0)
        left = whole.output_factor.unflatten(2, (spec.input_blocks, *slices)).movedim(3, 0)
        with torch.no_grad():
            layer.input_factor.copy_(right.flatten(2, 3))
            layer.output_factor.copy_(left.flatten(3, 4) * spec.active)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def forward(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Each input through its chosen experts; work is theirs alone, but for the tiles' ends."""
        check_width(x, columns=self.columns)
        inputs = x.reshape(-1, self.columns)
        if not torch.compiler.is_compiling() and not len(inputs):
            return x.new_zeros(*x.shape[:-1], self.rows)
        gates, chosen = route(functional.linear(inputs, self.router), self.spec.active)
        layout = lay_out(chosen, experts=self.spec.experts, length=self._tile(inputs))
        y = self._experts(inputs, gates, layout)
        return add_bias(y, self.bias).reshape(*x.shape[:-1], self.rows)

    def logits(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch experts"]:
        """What the router says of these inputs."""
        return functional.linear(x, self.router)

    def auxiliary_loss(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, ""]:
        """What training adds to its loss for these inputs, so that all experts are used."""
        check_width(x, columns=self.columns)
        return auxiliary_loss(self.logits(x).reshape(-1, self.spec.experts), self.spec.active)

    def expert_matrices(self) -> Float[Tensor, "experts rows columns"]:
        """The matrix of each expert, differentiable."""
        spec = self.spec
        right = self.input_factor.unflatten(2, (spec.output_blocks, spec.rank)).transpose(1, 2)
        left = self.output_factor.unflatten(3, (spec.input_blocks, spec.rank)).transpose(2, 3)
        dense = (left @ right).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        cropped: Tensor = dense[:, : self.rows, : self.columns]
        return cropped

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the experts so that equal gates keep the variance; the router starts with zeros."""
        check_generator(generator)
        width = self.input_factor.shape[3]
        inside = real_columns(self.columns, groups=self.spec.input_blocks, width=width)
        fan_in = inside[:, None, None]
        with torch.no_grad():
            draw_normal(self.input_factor, fan_in=fan_in, generator=generator)
            terms = self.output_factor.shape[3]
            draw_normal(self.output_factor, fan_in=terms, generator=generator)
            self.output_factor.mul_(self.spec.active**0.5)
            self.router.zero_()
            if self.bias is not None:
                self.bias.zero_()

    def fan_ins(self) -> dict[str, float]:
        """The router's columns, an expert's block, and a row of blocks."""
        return {
            "router": self.columns,
            "input_factor": self.input_factor.shape[3],
            "output_factor": self.output_factor.shape[3],
        }

    def dense_fan_in(self) -> int:
        """The columns."""
        return self.columns

    def core_count(self) -> int:
        """Both factors, and the router by its gates."""
        return 3

    def _experts(self, x: Tensor, gates: Tensor, layout: Layout) -> Tensor:
        """Each tile through its expert's two batched products; the gates weigh their outputs."""
        spec = self.spec
        groups, bands, rank, active = (
            spec.input_blocks,
            spec.output_blocks,
            spec.rank,
            spec.active,
        )
        width, height = self.input_factor.shape[3], self.output_factor.shape[2]
        if groups * width > self.columns:
            x = functional.pad(x, (0, groups * width - self.columns))
        # Blocks of inputs are gathered in the order of the first product, blocks of outputs from
        # that of the second: nothing is transposed on the way.
        right = self.input_factor.index_select(0, layout.expert)
        here = _spread(layout.source // active, groups)
        inputs = x.reshape(-1, width).index_select(0, here.flatten()).view(*here.shape, width)
        middle = inputs @ right.transpose(2, 3)
        middle = middle.unflatten(3, (bands, rank)).permute(0, 3, 2, 1, 4).flatten(3, 4)
        outputs = middle @ self.output_factor.index_select(0, layout.expert).transpose(2, 3)
        found = outputs.reshape(-1, height)
        length = layout.source.shape[1]
        first = layout.slot // length * (bands * length) + layout.slot % length
        blocks = first[:, None] + length * torch.arange(bands, device=first.device)
        # Adding one gather after another takes less time than a gather of all and their sum.
        parts = blocks.view(-1, active, bands).unbind(1)
        weights = gates.to(found.dtype).repeat_interleave(bands, 0).unsqueeze(2).unbind(1)
        y = found.index_select(0, parts[0].flatten()) * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            y = torch.addcmul(y, found.index_select(0, part.flatten()), weight)
        cropped: Tensor = y.view(-1, bands * height)[:, : self.rows]
        return cropped

    def _tile(self, inputs: Tensor) -> int:
        """Half of an expert's mean number of inputs: at most half as much again is multiplied."""
        if torch.compiler.is_compiling():
            return LONGEST_TILE  # shapes may be symbols here, upon which no choice may depend
        choices = len(inputs) * self.spec.active
        return max(1, min(LONGEST_TILE, choices // (2 * self.spec.experts)))


def _spread(source: Int[Tensor, "tiles length"], groups: int) -> Int[Tensor, "tiles groups length"]:
    """The places of the inputs' blocks, for each tile those of one group together."""
    group = torch.arange(groups, device=source.device)[:, None]
    return source[:, None] * groups + group
