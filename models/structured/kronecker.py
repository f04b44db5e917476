"""A sum of Kronecker products: W = sum_i A_i (x) B_i, two cores and a grid of one block."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from models.structured.checks import check_target
from models.structured.error_curve import ErrorCurve
from models.structured.two_cores import TwoCoresLinear
from models.structured.two_cores_curve import error_curve as terms_curve
from models.structures import Kronecker
from models.structures.base import check_sides


@final
class KroneckerLinear(TwoCoresLinear[Kronecker]):
    """Y = sum_i A_i X B_i^T for an input folded into a matrix X, plus b."""


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    block_rows: int,
    block_columns: int,
) -> ErrorCurve:
    """Every number of terms at once, exact for the weight where blocks of this size divide it."""
    check_target(weight, second_moment)
    of_rows, of_columns = ("block_rows", block_rows), ("block_columns", block_columns)
    check_sides(of_rows, of_columns, rows=weight.shape[0], columns=weight.shape[1])
    smallest = Kronecker(terms=1, block_rows=block_rows, block_columns=block_columns)
    return terms_curve(weight, second_moment, smallest)
