"""Which entries of a matrix a cyclic rectangle covers."""

import torch
from jaxtyping import Int
from torch import Tensor

from models.spec import Rectangle


def rectangle_indices(
    rectangle: Rectangle, *, rows: int, columns: int
) -> tuple[Int[Tensor, " height"], Int[Tensor, " width"]]:
    """The matrix rows and columns that a rectangle covers, in its own order."""
    return (
        (rectangle.row_start + torch.arange(rectangle.row_count)) % rows,
        (rectangle.column_start + torch.arange(rectangle.column_count)) % columns,
    )
