"""Fitting the contents of given rectangles to a matrix, by exact descent on one after the other.

Notation: R is what is left of the matrix, I and J a rectangle's rows and columns, C = E[x x^T].
Of all X on the rectangle, the output error is ||(X - G) L||^2 + constant with C[J, J] = L L^T and
G = R[I] C[:, J] C[J, J]^-1. So the best X of rank r is the truncated SVD of G L, times L^-1: the
first steps are exact. Later ones, when the others hardly move any more, only turn the last X's row
space towards the best: U = orth(G L (V L)^T), V L = U^T G L. The error never rises either way.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.low_rank import balanced
from models.structured.output_error import output_energy, regularised
from models.structured.rectangles import rectangle_indices
from models.structures import Gblr, Rectangle

MAXIMUM_SWEEPS = 100
EXACT_SWEEPS = 2  # by SVD, which takes some thirty times as long
# A sweep that removes less than this share of the matrix's energy is the last.
SMALLEST_GAIN = 1e-7

# A rectangle's row factor, `height x rank`, and column factor, `rank x width`.
Factors = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A rectangle, and L where there is a second moment."""

    rectangle: Rectangle
    rows: Tensor
    columns: Tensor
    lower: Tensor | None


def fit_rectangles(
    weight: Float[Tensor, "rows columns"],
    structure: Gblr,
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> list[Factors]:
    """Row and column factors of each rectangle, in float64; a tile's are of full rank.

    The data-aware fit starts from the plain one, or from zero where that is better: so its output
    error is never above either's.
    """
    rows, columns = weight.shape
    zero = [
        (torch.zeros(one.row_count, 1).double(), torch.zeros(1, one.column_count).double())
        for one in structure.rectangles
    ]
    matrix = weight.detach().double()
    places = [_place(one, None, rows=rows, columns=columns) for one in structure.rectangles]
    plain = _descend(matrix, places, zero, None)
    if second_moment is None:
        return plain
    moment = regularised(second_moment)
    places = [_place(one, moment, rows=rows, columns=columns) for one in structure.rectangles]
    rest = _rest(matrix, places, plain)
    better = output_energy(rest, moment) <= output_energy(matrix, moment)
    return _descend(matrix, places, plain if better else zero, moment)


def _descend(
    matrix: Tensor, places: list[_Place], start: list[Factors], moment: Tensor | None
) -> list[Factors]:
    fits, rest = list(start), _rest(matrix, places, start)
    energy, before = output_energy(matrix, moment), output_energy(rest, moment)
    for sweep in range(MAXIMUM_SWEEPS):
        for number, place in enumerate(places):
            where = place.rows[:, None], place.columns
            rest[where] += fits[number][0] @ fits[number][1]
            last = fits[number][1] if sweep >= EXACT_SWEEPS else None
            fits[number] = _best(rest, place, moment, last)
            rest[where] -= fits[number][0] @ fits[number][1]
        after = output_energy(rest, moment)
        if before - after <= SMALLEST_GAIN * energy:
            break
        before = after
    return fits


def _rest(matrix: Tensor, places: list[_Place], fits: list[Factors]) -> Tensor:
    rest = matrix.clone()
    for place, (row_factor, column_factor) in zip(places, fits, strict=True):
        rest[place.rows[:, None], place.columns] -= row_factor @ column_factor
    return rest


def _place(rectangle: Rectangle, moment: Tensor | None, *, rows: int, columns: int) -> _Place:
    row_ids, column_ids = rectangle_indices(rectangle, rows=rows, columns=columns)
    lower = None
    if moment is not None:
        lower = torch.linalg.cholesky(moment[column_ids[:, None], column_ids])
    return _Place(rectangle, row_ids, column_ids, lower)


def _best(rest: Tensor, place: _Place, moment: Tensor | None, last: Tensor | None) -> Factors:
    """The best factors; or, given the last column factor, better ones in less time."""
    target = rest[place.rows]
    if moment is None or place.lower is None:
        target = target[:, place.columns]
    else:
        # G L = R[I] C[:, J] L^-T
        target = torch.linalg.solve_triangular(
            place.lower.T, target @ moment[:, place.columns], upper=True, left=False
        )
    if place.rectangle.is_tile:
        row_factor, column_factor = torch.eye(len(target)).to(target), target
    elif last is None:
        left, singular, right = torch.linalg.svd(target, full_matrices=False)
        rank = place.rectangle.rank
        row_factor, column_factor = left[:, :rank] * singular[:rank], right[:rank]
    else:
        whitened = last if place.lower is None else last @ place.lower
        row_factor = torch.linalg.qr(target @ whitened.T).Q
        column_factor = row_factor.T @ target
    if place.lower is not None:
        column_factor = torch.linalg.solve_triangular(
            place.lower, column_factor, upper=False, left=False
        )
    return balanced(row_factor, column_factor)
