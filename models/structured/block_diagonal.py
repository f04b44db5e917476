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
from models.structured.output_error import outputs, regularised
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
        count = self.spec.blocks
        if second_moment is None:
            self.blocks.copy_(_on_diagonal(weight, count))
            return
        roots = _roots(regularised(second_moment), count)
        wanted = _on_diagonal(outputs(weight, second_moment), count)
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
    wanted = matrix if second_moment is None else outputs(weight, second_moment)
    total = (wanted * matrix).sum()
    explained = []
    counts = [count for count in range(1, smaller + 1) if _is_fewest(count, smaller)]
    for count in counts:
        if count == 1:
            explained.append(total)
            continue
        blocks = _on_diagonal(wanted, count)
        if moment is not None:
            roots = _roots(moment, count).mT
            blocks = torch.linalg.solve_triangular(roots, blocks, upper=True, left=False)
        explained.append(blocks.square().sum())
    errors = 1 - torch.stack(explained) / torch.where(total > 0, total, 1)
    structures = [BlockDiagonal(blocks=count) for count in counts]
    sizes = torch.tensor([one.mac_count(rows=rows, columns=columns) for one in structures])
    order = sizes.argsort(stable=True)
    return ErrorCurve(
        macs=sizes[order],
        parameters=sizes[order],
        errors=errors.clamp(min=0)[order] * (total > 0),
        member=lambda index: structures[int(order[index])],
    )


def _is_fewest(count: int, side: int) -> bool:
    return count == -(-side // -(-side // count))


def _on_diagonal(
    matrix: Float[Tensor, "rows columns"], count: int
) -> Float[Tensor, "blocks height width"]:
    """The blocks on the diagonal; what lies outside of the matrix reads as zeros."""
    rows, columns = matrix.shape
    height, width = -(-rows // count), -(-columns // count)
    found = matrix.new_zeros(count, height, width)
    whole = min(rows // height, columns // width)
    matrix = matrix.contiguous()
    strides = (height * columns + width, columns, 1)
    found[:whole] = matrix.as_strided((whole, height, width), strides, matrix.storage_offset())
    for index in range(whole, count):
        part = matrix[index * height : (index + 1) * height, index * width : (index + 1) * width]
        found[index, : part.shape[0], : part.shape[1]] = part
    return found


def _roots(
    moment: Float[Tensor, "columns columns"], count: int
) -> Float[Tensor, "blocks width width"]:
    """L of C[J, J] = L L^T for each block's columns J, with the identity in the padding."""
    inner = _on_diagonal(moment, count)
    inside = torch.arange(inner.shape[0] * inner.shape[1]) < len(moment)
    inner.diagonal(dim1=1, dim2=2)[~inside.view(inner.shape[:2])] = 1
    root: Tensor = torch.linalg.cholesky(inner)
    return root
