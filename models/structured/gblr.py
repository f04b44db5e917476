"""GBLR: W = sum_k P_k U_k V_k^T Q_k^T, low-rank factors on cyclic rectangles.

Lee & Kim, ICLR 2024, arXiv 2310.18882. P and Q place a rectangle's rows and columns.
"""

from collections.abc import Sequence
from typing import Literal, assert_never, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias, draw_normal
from models.structured.batched import writes_in_place
from models.structured.gblr_fit import Factors, fit_rectangles
from models.structured.rectangles import (
    packed_rank,
    packing,
    rectangle_indices,
    row_bands,
    stretches,
)
from models.structures import Gblr, Rectangle

Form = Literal["packed", "sliced"]
Piece = tuple[Tensor, Tensor] | Tensor
# The slices of a whole on which a cyclic range lies, each with the part of the range that does.
Stretches = list[tuple[slice, slice]]


@final
class GblrLinear(StructuredLinear[Gblr]):
    """y = sum_k U_k (V_k^T x[columns_k]) added into y[rows_k], plus b.

    `factors` holds, rectangle by rectangle, V^T (`rank x column_count`) and then U (`row_count x
    rank`), or the tile (`row_count x column_count`) where that is no larger. Two forms of one
    product: `packed` scatters the factors into two matrices of K = sum of ranks, `sliced` works on
    contiguous slices of x and y and executes exactly the MACs that are counted.
    """

    index: Int[Tensor, " numbers"]
    frame: Float[Tensor, " packed"]

    def __init__(
        self,
        structure: Gblr,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        form: Form | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.sizes = [rectangle.size for rectangle in structure.rectangles]
        self.factors = nn.Parameter(torch.zeros(sum(self.sizes), dtype=dtype))
        self.bands, self.covered = row_bands(structure, rows=rows)
        self.columns_of = [
            stretches(one.column_start, one.column_count, length=columns)
            for one in structure.rectangles
        ]
        self.rows_of = [
            stretches(one.row_start, one.row_count, length=rows) for one in structure.rectangles
        ]
        self.packed_rank = sum(map(packed_rank, structure.rectangles))
        self.set_form(form or faster_form(structure, rows=rows, columns=columns))

    @classmethod
    def from_factors(
        cls,
        structure: Gblr,
        factors: Sequence[Factors],
        *,
        rows: int,
        columns: int,
        bias: Float[Tensor, " rows"] | None = None,
        dtype: torch.dtype | None = None,
        form: Form | None = None,
    ) -> "GblrLinear":
        """The layer with these row and column factors, one pair a rectangle, tiles multiplied."""
        layer = cls(
            structure, rows=rows, columns=columns, bias=bias is not None, dtype=dtype, form=form
        )
        layer._fill(factors)
        layer.set_bias(bias)
        return layer

    def set_form(self, form: Form) -> None:
        """Compute the product in this form from now on."""
        self.form = form
        if form == "packed" and not hasattr(self, "frame"):
            index, ones = packing(self.spec, rows=self.rows, columns=self.columns)
            frame = self.factors.new_zeros(self.packed_rank * (self.rows + self.columns))
            frame[ones] = 1
            self.register_buffer("index", index.to(frame.device), persistent=False)
            self.register_buffer("frame", frame, persistent=False)

    def pieces(self) -> list[Piece]:
        """Views of `factors`: (row factor, column factor) of each rectangle, or its tile."""
        parts = torch.split(self.factors, self.sizes) if self.sizes else ()
        return [
            _piece(part, rectangle)
            for part, rectangle in zip(parts, self.spec.rectangles, strict=True)
        ]

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x, in the form chosen when the layer was built."""
        match self.form:
            case "packed":
                row_matrix, column_matrix = self.packed_factors()
                return functional.linear(functional.linear(x, column_matrix), row_matrix, bias)
            case "sliced":
                if writes_in_place(x, exported=True):
                    return self._accumulated(x, bias)
                return add_bias(self._sliced(x), bias)
            case _:
                assert_never(self.form)

    def packed_factors(
        self,
    ) -> tuple[Float[Tensor, "rows packed_rank"], Float[Tensor, "packed_rank columns"]]:
        """The row and the column matrix of the packed form, which must have been set."""
        packed = self.frame.scatter(0, self.index, self.factors)
        column_part, row_part = torch.split(
            packed, [self.packed_rank * self.columns, self.packed_rank * self.rows]
        )
        return (
            row_part.view(self.rows, self.packed_rank),
            column_part.view(self.packed_rank, self.columns),
        )

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The sum of all rectangles, built one by one."""
        dense = self.factors.new_zeros(self.rows, self.columns)
        for piece, rectangle in zip(self.pieces(), self.spec.rectangles, strict=True):
            rows, columns = rectangle_indices(rectangle, rows=self.rows, columns=self.columns)
            content = piece if isinstance(piece, Tensor) else piece[0] @ piece[1]
            dense = dense.index_put((rows[:, None], columns), content, accumulate=True)
        return dense

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Fit the rectangles' contents, of the weight or of its outputs, by exact descent."""
        self._fill(fit_rectangles(weight, self.spec, second_moment))

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw all pieces; a row's variance is shared by the ranks of all rectangles on it."""
        total = torch.zeros(self.rows)
        rectangles = self.spec.rectangles
        for rectangle in rectangles:
            rows, _ = rectangle_indices(rectangle, rows=self.rows, columns=self.columns)
            total[rows] += rectangle.rank
        for piece, rectangle in zip(self.pieces(), rectangles, strict=True):
            rows, _ = rectangle_indices(rectangle, rows=self.rows, columns=self.columns)
            fan_in = total[rows, None]
            width = rectangle.column_count
            if isinstance(piece, Tensor):
                draw_normal(piece, fan_in=width * fan_in / rectangle.rank, generator=generator)
            else:
                draw_normal(piece[1], fan_in=width, generator=generator)
                draw_normal(piece[0], fan_in=fan_in, generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """All pieces are one tensor: the mean number of columns, over the numbers stored."""
        rectangles = self.spec.rectangles
        total = sum(self.sizes)
        mean = sum(
            size * one.column_count for size, one in zip(self.sizes, rectangles, strict=True)
        )
        return {"factors": mean / total if total else 1.0}

    @torch.no_grad()
    def _fill(self, factors: Sequence[Factors]) -> None:
        for piece, (row_factor, column_factor) in zip(self.pieces(), factors, strict=True):
            if isinstance(piece, Tensor):
                piece.copy_(row_factor @ column_factor)
            else:
                piece[0].copy_(row_factor)
                piece[1].copy_(column_factor)

    def _sliced(self, x: Tensor) -> Tensor:
        """W x as a sum of new tensors, which gradients and compilers can follow."""
        sums: dict[int, Tensor] = {}
        pieces = zip(self.pieces(), self.columns_of, self.covered, strict=True)
        for piece, columns_of, covered in pieces:
            y = _content_product(x, piece, columns_of)
            parts = torch.split(y, [self.bands[band] for band in covered], -1)
            for band, part in zip(covered, parts, strict=True):
                sums[band] = sums[band] + part if band in sums else part
        like = next(iter(sums.values())) if sums else x
        bands = [
            sums[band] if band in sums else like.new_zeros(*x.shape[:-1], length)
            for band, length in enumerate(self.bands)
        ]
        return torch.cat(bands, -1)

    def _accumulated(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """W x + b, each rectangle's product added to its rows in place."""
        inputs = x.reshape(-1, self.columns)
        y = inputs.new_empty(inputs.shape[0], self.rows)
        placed = list(zip(self.pieces(), self.columns_of, self.rows_of, strict=True))
        # An exported program takes any number of inputs, so it cannot count the parts.
        whole = torch.compiler.is_exporting() or x.element_size() < 4
        parts = [(inputs, y)] if whole else zip(inputs.split(PART), y.split(PART), strict=True)
        for x_part, y_part in parts:
            if bias is None:
                y_part.zero_()
            else:
                y_part.copy_(bias)
            for piece, columns_of, rows_of in placed:
                _add_content_product(y_part, x_part, piece, columns_of, rows_of)
        return y.view(*x.shape[:-1], self.rows)


# Inputs that all rectangles are applied to at once, so that x and y stay in the cache from one
# rectangle to the next: with 1,576 inputs and rank 32, up to a third less time than all at once.
# In half precision, where parts of new sizes are prepared anew, it takes longer.
PART = 256

# What a rectangle costs in the sliced form beside its MACs, in MACs for one input; and the rank
# below which its GEMMs are so narrow that their time no longer falls with it. Measured at 64 to
# 1,576 inputs, for 4 to 69 rectangles of rank 8 to 64, 768 to 3,072 wide.
SLICED_OVERHEAD = 10_000
NARROW = 32


def faster_form(structure: Gblr, *, rows: int, columns: int) -> Form:
    """The form that should take less time."""
    packed = sum(map(packed_rank, structure.rectangles)) * (rows + columns)
    sliced = sum(
        SLICED_OVERHEAD + one.size * max(1, NARROW / packed_rank(one))
        for one in structure.rectangles
    )
    return "packed" if packed <= sliced else "sliced"


def _piece(part: Tensor, rectangle: Rectangle) -> Piece:
    height, width, rank = rectangle.row_count, rectangle.column_count, rectangle.rank
    if rectangle.is_tile:
        return part.view(height, width)
    column_part, row_part = torch.split(part, [rank * width, height * rank])
    return row_part.view(height, rank), column_part.view(rank, width)


def _content_product(x: Tensor, piece: Piece, columns_of: Stretches) -> Tensor:
    first = piece if isinstance(piece, Tensor) else piece[1]
    y, *rest = [functional.linear(x[..., there], first[:, here]) for there, here in columns_of]
    for other in rest:
        y = y + other
    return y if isinstance(piece, Tensor) else functional.linear(y, piece[0])


def _add_content_product(
    y: Tensor, x: Tensor, piece: Piece, columns_of: Stretches, rows_of: Stretches
) -> None:
    if isinstance(piece, Tensor):
        for row_there, row_here in rows_of:
            for there, here in columns_of:
                y[:, row_there].addmm_(x[:, there], piece[row_here, here].t())
        return
    row_factor, column_factor = piece
    (there, here), *rest = columns_of
    narrow = torch.mm(x[:, there], column_factor[:, here].t())
    for there, here in rest:
        narrow.addmm_(x[:, there], column_factor[:, here].t())
    for row_there, row_here in rows_of:
        y[:, row_there].addmm_(narrow, row_factor[row_here].t())
