"""Where cyclic rectangles lie: in a matrix, in its packed factors, on the bands of its rows."""

from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from models.structures import Gblr, Rectangle


def rectangle_indices(
    rectangle: Rectangle, *, rows: int, columns: int
) -> tuple[Int[Tensor, " height"], Int[Tensor, " width"]]:
    """The matrix rows and columns that a rectangle covers, in its own order."""
    return (
        (rectangle.row_start + torch.arange(rectangle.row_count)) % rows,
        (rectangle.column_start + torch.arange(rectangle.column_count)) % columns,
    )


def stretches(start: int, count: int, *, length: int) -> list[tuple[slice, slice]]:
    """Where a cyclic range lies, and which part of itself lies there: two where it wraps around."""
    here = min(count, length - start)
    found = [(slice(start, start + here), slice(0, here))]
    return found if here == count else [*found, (slice(0, count - here), slice(here, count))]


def packed_rank(rectangle: Rectangle) -> int:
    """How many terms a rectangle takes in the packed matrices."""
    if rectangle.is_tile:
        return min(rectangle.row_count, rectangle.column_count)
    return rectangle.rank


def packing(
    structure: Gblr, *, rows: int, columns: int
) -> tuple[Int[Tensor, " numbers"], Int[Tensor, " ones"]]:
    """Where each factor lies in the packed matrices, column matrix first, and where the ones do.

    A tile stands in one matrix; its partner in the other is an identity.
    """
    total = sum(map(packed_rank, structure.rectangles))
    indices, ones, done = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)], 0
    for rectangle in structure.rectangles:
        rank = packed_rank(rectangle)
        terms = torch.arange(done, done + rank)
        row_ids, column_ids = rectangle_indices(rectangle, rows=rows, columns=columns)
        in_columns = terms[:, None] * columns + column_ids
        in_rows = total * columns + row_ids[:, None] * total + terms
        if not rectangle.is_tile:
            indices += [in_columns.flatten(), in_rows.flatten()]
        elif rectangle.row_count <= rectangle.column_count:
            indices.append(in_columns.flatten())
            ones.append(in_rows.diagonal())
        else:
            indices.append(in_rows.flatten())
            ones.append(in_columns.diagonal())
        done += rank
    return torch.cat(indices), torch.cat(ones)


def row_bands(structure: Gblr, *, rows: int) -> tuple[list[int], list[list[int]]]:
    """Cut the rows wherever a rectangle starts or ends.

    Gives every band's length, and for each rectangle the bands it covers, in its order.
    """
    ends = [(one.row_start, one.row_start + one.row_count) for one in structure.rectangles]
    cuts = sorted({0, rows}.union(cut % rows for both in ends for cut in both))
    bands = list(pairwise(cuts))
    covered = [
        [
            band
            for turn in (0, rows)
            for band, (first, last) in enumerate(bands)
            if start <= first + turn and last + turn <= end
        ]
        for start, end in ends
    ]
    return [last - first for first, last in bands], covered
