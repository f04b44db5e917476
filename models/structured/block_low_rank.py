"""Block low rank: W_ij = U_ij V_ij^T for every block of a grid, each with a rank of its own."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.structured.base import StructuredLinear, add_bias, draw_normal, real_columns
from models.structured.batched import padded
from models.structured.block_grid import (
    cut,
    decompose_blocks,
    fit_blocks,
    own_terms,
)
from models.structured.checks import check_target
from models.structured.error_curve import ErrorCurve, remaining
from models.structures import BlockLowRank
from models.structures.base import check_sides


@final
class BlockLowRankLinear(StructuredLinear[BlockLowRank]):
    """y_i = sum_j U_ij (V_ij^T x_j): a product for each column group and for each row band, plus b.

    `column_factor` holds the V_ij^T group by group, j before i, and `row_factor` the U_ij^T band by
    band, i before j; `order` takes the numbers between them from the one order to the other.
    """

    order: Int[Tensor, " ranks"]

    def __init__(
        self,
        structure: BlockLowRank,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        height, width = structure.block_sides(rows=rows, columns=columns)
        total = structure.total_rank
        self.column_factor = nn.Parameter(torch.zeros(total, width, dtype=dtype))
        self.row_factor = nn.Parameter(torch.zeros(total, height, dtype=dtype))
        ranks = torch.tensor(structure.ranks)
        self.band_ranks = ranks.sum(1).tolist()
        self.group_ranks = ranks.sum(0).tolist()
        # A term's place among all of its group's, found where its band asks for it.
        ids = torch.arange(total).split(ranks.T.flatten().tolist())
        bands, groups = ranks.shape
        parts = [ids[group * bands + band] for band in range(bands) for group in range(groups)]
        self.register_buffer("order", torch.cat(parts), persistent=False)

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Through the narrow middle, whose numbers lie with the inputs last: whole rows move."""
        groups, width = len(self.group_ranks), self.column_factor.shape[1]
        inputs = padded(x.reshape(-1, self.columns), groups * width).split(width, 1)
        columns = self.column_factor.split(self.group_ranks)
        parts = [factor @ part.T for factor, part in zip(columns, inputs, strict=True)]
        middle = torch.cat(parts).index_select(0, self.order).split(self.band_ranks)
        rows = self.row_factor.split(self.band_ranks)
        y = torch.cat([part.T @ factor for part, factor in zip(middle, rows, strict=True)], 1)
        return add_bias(y[:, : self.rows].reshape(*x.shape[:-1], self.rows), bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Each band's factors, every term at its own columns, multiplied; cropped."""
        groups = len(self.group_ranks)
        lengths = torch.tensor(self.group_ranks, device=self.order.device)
        group = torch.arange(groups, device=self.order.device).repeat_interleave(lengths)
        spread = self.column_factor[:, None] * torch.nn.functional.one_hot(group, groups)[..., None]
        right = spread.to(self.column_factor.dtype).flatten(1)[self.order].split(self.band_ranks)
        left = self.row_factor.split(self.band_ranks)
        dense = torch.cat([one.T @ other for one, other in zip(left, right, strict=True)])
        return dense[: self.rows, : self.columns]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """The exact projection; of the outputs, exact descent over the column groups from it."""
        ranks = torch.tensor(self.spec.ranks)
        terms = fit_blocks(weight, ranks, second_moment)
        keep = torch.arange(terms.energies.shape[2]) < ranks[..., None]
        self.row_factor.copy_(terms.left.mT[keep])
        self.column_factor.copy_(terms.right.transpose(0, 1)[keep.transpose(0, 1)])

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw both factors; a row's variance is shared by all ranks of its band."""
        width = self.column_factor.shape[1]
        inside = real_columns(self.columns, groups=len(self.group_ranks), width=width)
        columns = inside.repeat_interleave(torch.tensor(self.group_ranks))
        bands = torch.tensor(self.band_ranks)
        draw_normal(self.column_factor, fan_in=columns[:, None], generator=generator)
        draw_normal(
            self.row_factor, fan_in=bands.repeat_interleave(bands)[:, None], generator=generator
        )

    def fan_ins(self) -> dict[str, float]:
        """A block's columns, then the ranks of a row's band, in the mean over all ranks."""
        share = sum(rank**2 for rank in self.band_ranks) / sum(self.band_ranks)
        return {"column_factor": self.column_factor.shape[1], "row_factor": share}


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    row_blocks: int,
    column_blocks: int,
) -> ErrorCurve:
    """Every sum of ranks at once, by water-filling: the terms of largest energy, wherever they are.

    Exact for the weight; for its outputs, the start of the projection.
    """
    check_target(weight, second_moment)
    of_rows, of_columns = ("row_blocks", row_blocks), ("column_blocks", column_blocks)
    check_sides(of_rows, of_columns, rows=weight.shape[0], columns=weight.shape[1])
    blocks = cut(weight, row_blocks=row_blocks, column_blocks=column_blocks)
    if second_moment is None:
        energies = decompose_blocks(blocks).energies
        order = _by_energy(energies)
        errors = remaining(energies.flatten()[order])
    else:
        terms = own_terms(weight, second_moment, row_blocks=row_blocks, column_blocks=column_blocks)
        energies = terms.energies
        order = _by_energy(energies)
        places = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
        falls = terms.explained(places.view_as(energies).flatten(1))
        errors = remaining(falls.flatten()[order])
    where = order // energies.shape[2]
    sizes = torch.arange(1, len(order) + 1) * (blocks.shape[2] + blocks.shape[3])

    def structure(index: int) -> BlockLowRank:
        counts = torch.bincount(where[: index + 1], minlength=row_blocks * column_blocks)
        ranks = counts.view(row_blocks, column_blocks).tolist()
        return BlockLowRank(ranks=tuple(map(tuple, ranks)))

    return ErrorCurve(macs=sizes, parameters=sizes, errors=errors, member=structure)


def _by_energy(energies: Tensor) -> Tensor:
    """The terms of all blocks, the largest first, each block's in their own order."""
    nested = energies.cummin(-1).values  # rounding may swap two of a block's
    return nested.flatten().argsort(descending=True, stable=True)
