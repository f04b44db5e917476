"""Diagonals: (W x)_i = sum of W[i, j] x_j over the positions (i, j) of the band and of the rest.

All positions form one list, sorted by rows, so that a row is one bag of weighted inputs: torch's
embedding bag sums it up without a copy for each position. Timed on one core at 768 x 768 with 512
inputs and 32 diagonals: .4 ms, where a sum of shifted slices took .9, gathered products summed by
index 5.2, a sparse CSR product 3.2, and the dense product 11.8.
"""

from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias, draw_normal
from models.structured.output_error import regularised
from models.structures import Diagonals

# Entries of C gathered at once when rows are solved together: 64 MiB in float64.
GATHERED = 2**23


@final
class DiagonalsLinear(StructuredLinear[Diagonals]):
    """y_i = sum over the row's positions, plus b."""

    rows_of: Int[Tensor, " numbers"]
    columns_of: Int[Tensor, " numbers"]
    starts: Int[Tensor, " rows"]

    def __init__(
        self,
        structure: Diagonals,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        row_of, column_of = positions(structure, rows=rows, columns=columns)
        counts = torch.bincount(row_of, minlength=rows)
        self.register_buffer("rows_of", row_of, persistent=False)
        self.register_buffer("columns_of", column_of, persistent=False)
        self.register_buffer("starts", counts.cumsum(0) - counts, persistent=False)
        self.numbers = nn.Parameter(torch.zeros(len(row_of), dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x: for each row the weighted sum of those inputs that it has numbers for."""
        numbers: Tensor = self.numbers
        if torch.is_autocast_enabled(x.device.type):  # which does not know this operation
            half = torch.get_autocast_dtype(x.device.type)
            x, numbers = x.to(half), numbers.to(half)
        inputs = x.reshape(-1, self.columns).T.contiguous()
        outputs = functional.embedding_bag(
            self.columns_of, inputs, self.starts, mode="sum", per_sample_weights=numbers
        )
        return add_bias(outputs.T.reshape(*x.shape[:-1], self.rows), bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The numbers at their positions."""
        dense = self.numbers.new_zeros(self.rows, self.columns)
        return dense.index_put((self.rows_of, self.columns_of), self.numbers)

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Crop; or, given C, the least-squares solution W_i C[:, J] C[J, J]^-1 of each row."""
        if second_moment is None:
            self.numbers.copy_(weight[self.rows_of, self.columns_of])
            return
        moment = regularised(second_moment)
        wanted = (weight.double() @ moment)[self.rows_of, self.columns_of]
        counts = torch.bincount(self.rows_of, minlength=self.rows)
        for rows in batches(counts):
            longest = int(counts[rows].max())
            place = torch.arange(longest, device=weight.device)
            real = place < counts[rows, None]
            at = torch.where(real, self.starts[rows, None] + place, 0)
            gram = padded_gram(moment, self.columns_of[at], real)
            right = torch.where(real, wanted[at], 0)
            solved = torch.cholesky_solve(right[..., None], torch.linalg.cholesky(gram))[..., 0]
            self.numbers[at[real]] = solved[real].to(weight.dtype)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw every row with its own count of numbers."""
        counts = torch.bincount(self.rows_of, minlength=self.rows)
        draw_normal(self.numbers, fan_in=counts[self.rows_of], generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """The mean count of the rows that have numbers."""
        return {"numbers": len(self.numbers) / len(self.rows_of.unique())}


def positions(
    structure: Diagonals, *, rows: int, columns: int
) -> tuple[Int[Tensor, " numbers"], Int[Tensor, " numbers"]]:
    """Rows and columns of all free numbers, sorted by row and then by column."""
    offsets = torch.tensor(structure.offsets, dtype=torch.long)
    found = torch.arange(rows)[:, None] + offsets
    row, place = ((found >= 0) & (found < columns)).nonzero(as_tuple=True)
    single = torch.tensor(structure.entries, dtype=torch.long).reshape(-1, 2)
    flat = torch.cat([row * columns + found[row, place], single[:, 0] * columns + single[:, 1]])
    flat = flat.sort().values
    return flat // columns, flat % columns


def batches(counts: Int[Tensor, " rows"]) -> list[Int[Tensor, " some"]]:
    """Rows that have numbers, those of like counts together, in groups that fit into memory."""
    order = counts.argsort(descending=True)
    order = order[counts[order] > 0]
    found = []
    while len(order):
        together = max(1, GATHERED // int(counts[order[0]]) ** 2)
        found.append(order[:together])
        order = order[together:]
    return found


def padded_gram(
    moment: Float[Tensor, "columns columns"],
    columns_of: Int[Tensor, "rows places"],
    real: Bool[Tensor, "rows places"],
) -> Float[Tensor, "rows places places"]:
    """C[J, J] for each row's columns J, with the identity where a row has fewer than others."""
    # Twice as fast as by two indices, which took most of the time of a curve.
    at = columns_of[:, :, None] * len(moment) + columns_of[:, None, :]
    gram = moment.reshape(-1).index_select(0, at.flatten()).view(at.shape)
    if not real.all():
        gram.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0)
        gram.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1)
    return gram
