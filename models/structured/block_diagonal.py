"""Block diagonal: W = diag(W_1, ..., W_b), padded up to equal blocks where b does not divide."""

from typing import final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.structured.base import StructuredLinear, draw_normal
from models.structured.batched import padded, side_by_side
from models.structured.output_error import regularised
from models.structures import BlockDiagonal


@final
class BlockDiagonalLinear(StructuredLinear[BlockDiagonal]):
    """y_i = W_i x_i for each block i, plus b."""

    def __init__(
        self,
        structure: BlockDiagonal,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        height, width = -(-rows // structure.blocks), -(-columns // structure.blocks)
        self.blocks = nn.Parameter(torch.zeros(structure.blocks, height, width, dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """All blocks in one batched product."""
        count, _, width = self.blocks.shape
        inputs = padded(x.reshape(-1, self.columns), count * width).unflatten(1, (count, width))
        y = side_by_side(inputs.transpose(0, 1), self.blocks, bias)
        return y[:, : self.rows].reshape(*x.shape[:-1], self.rows)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The blocks on the diagonal, cropped."""
        spread = torch.diag_embed(self.blocks.permute(1, 2, 0))
        padded = rearrange(spread, "row column block other -> (block row) (other column)")
        return padded[: self.rows, : self.columns]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Crop; or, given C, the least-squares solution W_i C[:, J] C[J, J]^-1 of each block."""
        matrix = weight.double()
        moment = None if second_moment is None else regularised(second_moment)
        count, height, width = self.blocks.shape
        for index in range(count):
            inside = slice(index * width, min((index + 1) * width, self.columns))
            band = matrix[index * height : (index + 1) * height]
            block = band[:, inside]
            if moment is not None:
                root = torch.linalg.cholesky(moment[inside, inside])
                block = torch.cholesky_solve((band @ moment[:, inside]).T, root).T
            self.blocks[index, : block.shape[0], : block.shape[1]] = block

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw every block; the last may see fewer real columns than the others."""
        count, _, width = self.blocks.shape
        starts = torch.arange(count) * width
        inside = (self.columns - starts).clamp(min=1, max=width)
        draw_normal(self.blocks, fan_in=inside[:, None, None], generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """Every output sums up its block's columns."""
        return {"blocks": self.blocks.shape[2]}
