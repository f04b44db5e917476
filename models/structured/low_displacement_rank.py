"""Low displacement rank: W = sum over u of A^u G H^T B^u, A and B weighted shifts that are learned.

A, B  subdiagonal: A[i, i - 1] is free, the corner included; tridiagonal: A[i, i] and A[i, i + 1]
      are free, too. B^T has the form of A.
u     runs over the longer side n. W - A W B = G H^T - A^n G H^T B^n, which is a multiple of G H^T
      for subdiagonal operators of a square matrix: then A^n and B^n are multiples of the identity.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear
from models.structured.descent import affordable_steps, best_of_restarts, descend
from models.structured.output_error import best_scale, regularised
from models.structures import LowDisplacementRank
from models.structures.low_displacement_rank import BANDS

RESTARTS, STEPS = 3, 200  # of a plain fit
# A smaller squared error than chance gives tells of a member, to which the valley is long.
NEAR, FOUND, PATIENCE = 1e-2, 1e-6, 6
AWARE_STEPS = 60  # of the fit to the outputs that follows it
JITTER = 0.2  # of the operators' weights where a fit starts anew


@final
class LowDisplacementRankLinear(StructuredLinear[LowDisplacementRank]):
    """y = W x + b, W made once for every call by doubling the number of its terms."""

    def __init__(
        self,
        structure: LowDisplacementRank,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        bands, rank = BANDS[structure.operators], structure.rank
        self.row_operator = nn.Parameter(torch.zeros(bands, rows, dtype=dtype))
        self.column_operator = nn.Parameter(torch.zeros(bands, columns, dtype=dtype))
        self.row_generator = nn.Parameter(torch.zeros(rank, rows, dtype=dtype))
        self.column_generator = nn.Parameter(torch.zeros(rank, columns, dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """The matrix, once for all inputs, and its product with them."""
        return functional.linear(x, self.to_dense().to(x.dtype), bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """All terms, in float32 at least."""
        with torch.autocast(self.row_generator.device.type, enabled=False):
            dtype = self.row_generator.dtype
            exact = dtype if dtype == torch.float64 else torch.float32
            tensors = (
                self.row_operator,
                self.column_operator,
                self.row_generator,
                self.column_generator,
            )
            row, column, left, right = (tensor.to(exact) for tensor in tensors)
            terms = max(self.rows, self.columns)
            if self.spec.operators == "subdiagonal":
                return shifted_sum(row[0], column[0], left.T @ right, terms).to(dtype)
            powers = krylov(row, left.T, terms), krylov(column, right.T, terms)
            return (powers[0] @ powers[1].T).to(dtype)

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Descend from shifts, then from shifts of uneven weights, and keep the best."""
        target = weight.double()

        def start(attempt: int) -> None:
            self._start(target, JITTER * attempt, generator)

        steps = affordable_steps(self, most=STEPS)
        error = best_of_restarts(self, weight, None, start, restarts=RESTARTS, steps=steps)
        numbers = self.spec.parameter_count(rows=self.rows, columns=self.columns)
        if numbers < weight.numel() and FOUND < error < NEAR:
            descend(self, weight, steps=PATIENCE * steps)
        if second_moment is not None:
            self._rescale(target, regularised(second_moment))
            descend(self, weight, second_moment, steps=min(steps, AWARE_STEPS))

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw the generators, between shifts; scale them to the variance that is asked for."""
        self._set_shifts()
        for tensor in (self.row_generator, self.column_generator):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        size = (self.rows / self.to_dense().square().sum()) ** 0.25
        self.row_generator.mul_(size)
        self.column_generator.mul_(size)

    def fan_ins(self) -> dict[str, float]:
        """Operators work as often as a side is long; generators sum up columns and all terms."""
        return {
            "row_operator": max(self.rows, self.columns),
            "column_operator": max(self.rows, self.columns),
            "column_generator": self.columns,
            "row_generator": self.spec.rank * max(self.rows, self.columns),
        }

    def _set_shifts(self) -> None:
        """Cyclic shifts, one with a change of sign, so that W - A W B is 2 G H^T if square."""
        for operator in (self.row_operator, self.column_operator):
            operator.zero_()
            operator[0] = 1
        self.column_operator[0, 0] = -1

    def _start(self, target: Tensor, jitter: float, generator: torch.Generator) -> None:
        """The truncated displacement of the target, for shifts whose weights are disturbed."""
        self._set_shifts()
        for operator in (self.row_operator, self.column_operator):
            noise = torch.randn(operator.shape, generator=generator, dtype=torch.float64)
            operator.add_((jitter * noise).to(operator))
        moved = applied(self.row_operator.double(), target)
        moved = applied(self.column_operator.double(), moved.T).T
        left, singular, right = torch.linalg.svd(target - moved, full_matrices=False)
        scale = singular[: self.spec.rank].sqrt()
        self.row_generator.copy_((left[:, : self.spec.rank] * scale).T)
        self.column_generator.copy_(right[: self.spec.rank] * scale[:, None])
        self._rescale(target, None)

    def _rescale(self, target: Tensor, moment: Tensor | None) -> None:
        """The best multiple of what is there: never worse than zero, nor than it was."""
        best = best_scale(self.to_dense(), target, moment)
        self.row_generator.mul_(math.copysign(math.sqrt(abs(best)), best))
        self.column_generator.mul_(math.sqrt(abs(best)))


def applied(
    operator: Float[Tensor, "bands size"], matrix: Float[Tensor, "size columns"]
) -> Float[Tensor, "size columns"]:
    """A M: each row takes from the row before and, if tridiagonal, from itself and the next."""
    found = operator[0, :, None] * matrix.roll(1, 0)
    if len(operator) > 1:
        found = found + operator[1, :, None] * matrix + operator[2, :, None] * matrix.roll(-1, 0)
    return found


def krylov(
    operator: Float[Tensor, "bands size"], start: Float[Tensor, "size rank"], terms: int
) -> Float[Tensor, "size powers"]:
    """G, A G, A^2 G, ... side by side: each power of two doubles what is there."""
    power = applied(operator, torch.eye(len(start), dtype=start.dtype, device=start.device))
    found, count = start, 1
    while True:
        found = torch.cat([found, power @ found], dim=1)
        count *= 2
        if count >= terms:
            return found[:, : terms * start.shape[1]]
        power = power @ power


def shifted_sum(
    row: Float[Tensor, " rows"],
    column: Float[Tensor, " columns"],
    first: Float[Tensor, "rows columns"],
    terms: int,
) -> Float[Tensor, "rows columns"]:
    """The sum of A^u M B^u over u below `terms`; a power of a weighted shift is another.

    Follows the binary digits of the number of terms: doubled, S + A^t S B^t; and one more term,
    M + A S B. Each is one pass over the matrix.
    """
    found, row_weights, column_weights, count = first, row, column, 1
    for digit in bin(terms)[3:]:
        moved = found.roll((count, count), (0, 1))
        found = found + row_weights[:, None] * moved * column_weights
        row_weights = row_weights * row_weights.roll(count)
        column_weights = column_weights * column_weights.roll(count)
        count *= 2
        if digit == "1":
            found = first + row[:, None] * found.roll((1, 1), (0, 1)) * column
            row_weights, column_weights = row * row_weights.roll(1), column * column_weights.roll(1)
            count += 1
    return found
