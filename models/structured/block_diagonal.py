"""Block diagonal: W = diag(W_1, ..., W_b), padded up to equal blocks where b does not divide."""

from typing import final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.structured.base import StructuredLinear, draw_normal, real_columns
from models.structured.batched import padded, side_by_side, writes_in_place
from models.structured.checks import check_target
from models.structured.error_curve import ErrorCurve
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
        inputs = x.reshape(-1, self.columns)
        if count * width > self.columns and writes_in_place(x):
            y = self._unpadded(inputs, bias)
        else:
            inputs = padded(inputs, count * width).unflatten(1, (count, width))
            y = side_by_side(inputs.transpose(0, 1), self.blocks, bias)
        return y[:, : self.rows].reshape(*x.shape[:-1], self.rows)

    def _unpadded(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """The same without a copy of the inputs: the block that lacks some is multiplied alone."""
        count, height, width = self.blocks.shape
        whole, rest = divmod(self.columns, width)
        y = inputs.new_empty(len(inputs), count, height)
        pieces = inputs[:, : whole * width].unflatten(1, (whole, width))
        matrices = self.blocks.transpose(1, 2)
        torch.bmm(pieces.transpose(0, 1), matrices[:whole], out=y[:, :whole].transpose(0, 1))
        if rest:
            torch.mm(inputs[:, whole * width :], matrices[whole, :rest], out=y[:, whole])
        y[:, whole + bool(rest) :] = 0  # blocks of padding alone
        y = y.flatten(1)
        if bias is not None:
            y[:, : self.rows] += bias
        return y

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
        places = _Places(self.rows, self.columns, self.spec.blocks)
        matrix = weight.double()
        if second_moment is None:
            self.blocks.copy_(places.of(matrix))
            return
        moment = regularised(second_moment)
        roots = torch.linalg.cholesky(places.of_moment(moment))
        wanted = places.of(matrix @ moment)
        self.blocks.copy_(torch.cholesky_solve(wanted.mT, roots).mT)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw every block; the last may see fewer real columns than the others."""
        count, _, width = self.blocks.shape
        inside = real_columns(self.columns, groups=count, width=width)
        draw_normal(self.blocks, fan_in=inside[:, None, None], generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """Every output sums up its block's columns."""
        return {"blocks": self.blocks.shape[2]}


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> ErrorCurve:
    """Every height of the blocks, each with the fewest that cover the matrix; exact, C or not.

    More blocks of the same height cost about the same and hold less.
    """
    check_target(weight, second_moment)
    rows, columns = weight.shape
    smaller = min(rows, columns)
    matrix = weight.detach().double()
    moment = None if second_moment is None else regularised(second_moment)
    wanted = matrix if moment is None else matrix @ moment
    explained = []
    counts = [count for count in range(1, smaller + 1) if _is_fewest(count, smaller)]
    for count in counts:
        places = _Places(rows, columns, count)
        blocks = places.of(wanted).mT
        if moment is not None:
            roots = torch.linalg.cholesky(places.of_moment(moment))
            blocks = torch.linalg.solve_triangular(roots, blocks, upper=False)
        explained.append(blocks.square().sum())
    total = (wanted * matrix).sum()
    errors = 1 - torch.stack(explained) / torch.where(total > 0, total, 1)
    structures = [BlockDiagonal(blocks=count) for count in counts]
    sizes = torch.tensor([one.mac_count(rows=rows, columns=columns) for one in structures])
    order = sizes.argsort(stable=True)
    return ErrorCurve(
        macs=sizes[order],
        parameters=sizes[order],
        errors=errors.clamp(min=0)[order] * (total > 0),
        structure=lambda index: structures[int(order[index])],
    )


def _is_fewest(count: int, side: int) -> bool:
    return count == -(-side // -(-side // count))


class _Places:
    """Where the blocks on the diagonal lie; what lies outside of the matrix reads as zeros."""

    def __init__(self, rows: int, columns: int, count: int) -> None:
        row, column = (torch.arange(count * -(-side // count)) for side in (rows, columns))
        self.rows, self.columns = row.view(count, -1), column.view(count, -1)
        self.real_rows, self.real_columns = self.rows < rows, self.columns < columns

    def of(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "blocks height width"]:
        """The blocks of a matrix."""
        real = self.real_rows[:, :, None] & self.real_columns[:, None, :]
        rows, columns = (self.rows * self.real_rows, self.columns * self.real_columns)
        return torch.where(real, matrix[rows[:, :, None], columns[:, None, :]], 0)

    def of_moment(
        self, moment: Float[Tensor, "columns columns"]
    ) -> Float[Tensor, "blocks width width"]:
        """C[J, J] of each block's columns J, with the identity in the padding."""
        real = self.real_columns[:, :, None] & self.real_columns[:, None, :]
        columns = self.columns * self.real_columns
        found = torch.where(real, moment[columns[:, :, None], columns[:, None, :]], 0)
        return found + torch.diag_embed((~self.real_columns).to(found))
