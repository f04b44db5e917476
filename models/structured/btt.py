"""Block tensor-train: W_pg = L_pg R_pg of one rank for every block of a grid.

Qiu et al., ICML 2024, arXiv 2406.06248; with rank 1 Monarch (Dao et al., ICML 2022, 2204.00595).
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.structured.base import StructuredLinear, draw_normal, real_columns
from models.structured.batched import padded, side_by_side, writes_in_place
from models.structured.block_grid import (
    cut,
    decompose_blocks,
    fit_blocks,
    own_terms,
)
from models.structured.checks import check_target
from models.structured.error_curve import ErrorCurve, remaining
from models.structures import Btt
from models.structures.base import check_sides

# From so many inputs on, reordering the output factor pays for a middle that is never copied.
MANY_INPUTS = 256


@final
class BttLinear(StructuredLinear[Btt]):
    """y_p = sum_g L_pg (R_pg x_g), by one batched product over the g and one over the p, plus b.

    `input_factor[g]` holds R_pg for all p below each other, `output_factor[p]` L_pg for all g side
    by side.
    """

    def __init__(
        self,
        structure: Btt,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        groups, bands, rank = structure.input_blocks, structure.output_blocks, structure.rank
        height, width = structure.block_sides(rows=rows, columns=columns)
        self.input_factor = nn.Parameter(torch.zeros(groups, bands * rank, width, dtype=dtype))
        self.output_factor = nn.Parameter(torch.zeros(bands, height, groups * rank, dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Two batched products; between them the middle changes from input to output blocks."""
        groups, _, width = self.input_factor.shape
        inputs = padded(x.reshape(-1, self.columns), groups * width).unflatten(1, (groups, width))
        # Measured with MKL: oneDNN, which takes half precision, transposes its inputs slowly.
        wide = x.dtype in (torch.float32, torch.float64)
        if wide and writes_in_place(x) and len(inputs) >= MANY_INPUTS:
            y = self._inputs_last(inputs, bias)
        else:
            y = self._inputs_first(inputs, bias)
        return y[:, : self.rows].reshape(*x.shape[:-1], self.rows)

    def _inputs_first(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        _, bands, rank = self._sizes()
        middle = torch.bmm(inputs.transpose(0, 1), self.input_factor.transpose(1, 2))
        middle = middle.unflatten(2, (bands, rank)).permute(2, 1, 0, 3).flatten(2)
        return side_by_side(middle, self.output_factor, bias)

    def _inputs_last(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """With the middle as `(bands, rank, groups) x inputs`, both products take it as it is."""
        groups, bands, rank = self._sizes()
        middle = inputs.new_empty(bands * rank, groups, len(inputs))
        torch.bmm(self.input_factor, inputs.permute(1, 2, 0), out=middle.transpose(0, 1))
        middle = middle.view(bands, rank * groups, len(inputs)).transpose(1, 2)
        factor = self.output_factor.unflatten(2, (groups, rank)).transpose(2, 3).flatten(2)
        return side_by_side(middle, factor, bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Every block's factors multiplied, side by side and below each other, cropped."""
        groups, bands, rank = self._sizes()
        right = self.input_factor.unflatten(1, (bands, rank)).transpose(0, 1)
        left = self.output_factor.unflatten(2, (groups, rank)).transpose(1, 2)
        dense: Tensor = (left @ right).transpose(1, 2).flatten(2).flatten(0, 1)
        return dense[: self.rows, : self.columns]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """The exact projection; of the outputs, exact descent over the column groups from it."""
        groups, bands, rank = self._sizes()
        terms = fit_blocks(weight, torch.full((bands, groups), rank), second_moment)
        self.input_factor.copy_(terms.right.transpose(0, 1).flatten(1, 2))
        self.output_factor.copy_(terms.left.transpose(1, 2).flatten(2))

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw both factors, each with its own fan-in; the last group may lack columns."""
        groups, _, width = self.input_factor.shape
        inside = real_columns(self.columns, groups=groups, width=width)
        draw_normal(self.input_factor, fan_in=inside[:, None, None], generator=generator)
        draw_normal(self.output_factor, fan_in=self.output_factor.shape[2], generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """A block's columns, then all ranks of a row of blocks."""
        return {
            "input_factor": self.input_factor.shape[2],
            "output_factor": self.output_factor.shape[2],
        }

    def _sizes(self) -> tuple[int, int, int]:
        return self.spec.input_blocks, self.spec.output_blocks, self.spec.rank


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    input_blocks: int,
    output_blocks: int,
) -> ErrorCurve:
    """Every rank at once: exact for the weight; for its outputs, the start of the projection."""
    check_target(weight, second_moment)
    of_rows, of_columns = ("output_blocks", output_blocks), ("input_blocks", input_blocks)
    check_sides(of_rows, of_columns, rows=weight.shape[0], columns=weight.shape[1])
    blocks = cut(weight, row_blocks=output_blocks, column_blocks=input_blocks)
    if second_moment is None:
        errors = remaining(decompose_blocks(blocks).energies.sum((0, 1)))
    else:
        terms = own_terms(
            weight, second_moment, row_blocks=output_blocks, column_blocks=input_blocks
        )
        places = torch.arange(terms.energies.shape[2]).expand_as(terms.energies).flatten(1)
        errors = remaining(terms.explained(places).view_as(terms.energies).sum((0, 1)))
    ranks = torch.arange(1, len(errors) + 1)
    sizes = ranks * input_blocks * output_blocks * (blocks.shape[2] + blocks.shape[3])
    return ErrorCurve(
        macs=sizes,
        parameters=sizes,
        errors=errors,
        member=lambda index: Btt(
            input_blocks=input_blocks, output_blocks=output_blocks, rank=index + 1
        ),
    )
