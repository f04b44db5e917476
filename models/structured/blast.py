"""BLAST: W_ij = U_i diag(s_ij) V_j^T on a b x b grid (Lee et al., arXiv 2410.21262)."""

from typing import final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.structured.base import StructuredLinear, draw_normal
from models.structured.batched import padded, side_by_side
from models.structured.blast_fit import nearest
from models.structures import Blast


@final
class BlastLinear(StructuredLinear[Blast]):
    """z_j = V_j^T x_j, then z'_i = sum_j s_ij z_j for each rank, then y_i = U_i z'_i + b_i."""

    def __init__(
        self,
        structure: Blast,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        blocks, rank = structure.blocks, structure.rank
        height, width = -(-rows // blocks), -(-columns // blocks)
        self.column_factor = nn.Parameter(torch.zeros(blocks, rank, width, dtype=dtype))
        # By rank first: the mixing of all tokens is one batched product of small matrices.
        self.mixing = nn.Parameter(torch.zeros(rank, blocks, blocks, dtype=dtype))
        self.row_factor = nn.Parameter(torch.zeros(blocks, height, rank, dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Three batched products, on strided views: nothing is copied in between."""
        blocks, height, _ = self.row_factor.shape
        width = self.column_factor.shape[2]
        inputs = padded(x, blocks * width).reshape(-1, blocks, width).permute(1, 2, 0)
        narrow = torch.bmm(self.column_factor, inputs)
        mixed = torch.bmm(self.mixing, narrow.transpose(0, 1)).permute(1, 2, 0)
        y = side_by_side(mixed, self.row_factor, bias)
        return y.reshape(*x.shape[:-1], blocks * height)[..., : self.rows]

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Each row of blocks as U_i times its mixed V, cropped."""
        mixed = torch.einsum("kij,jkq->ikjq", self.mixing, self.column_factor)
        padded = rearrange(self.row_factor @ mixed.flatten(2), "i p n -> (i p) n")
        return padded[: self.rows, : self.columns]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Alternate exact least squares from the best low-rank approximation and random starts."""
        found = nearest(
            weight,
            blocks=self.spec.blocks,
            rank=self.spec.rank,
            second_moment=second_moment,
            generator=generator,
        )
        self.column_factor.copy_(found.column_factor)
        self.mixing.copy_(found.mixing.permute(2, 0, 1))
        self.row_factor.copy_(found.row_factor)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw all three, each with its own fan-in; the last band may see fewer real columns."""
        blocks, rank, width = self.column_factor.shape
        inside = (self.columns - torch.arange(blocks) * width).clamp(min=1, max=width)
        draw_normal(self.column_factor, fan_in=inside[:, None, None], generator=generator)
        draw_normal(self.mixing, fan_in=blocks, generator=generator)
        draw_normal(self.row_factor, fan_in=rank, generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """A band's columns, the blocks in a row, the rank."""
        blocks, rank, width = self.column_factor.shape
        return {"column_factor": width, "mixing": blocks, "row_factor": rank}
