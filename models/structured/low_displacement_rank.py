"""Low displacement rank: W = sum over u of A^u G H^T B^u, A and B weighted shifts that are learned.

A, B  subdiagonal: A[i, i - 1] is free, the corner included; tridiagonal: A[i, i] and A[i, i + 1]
      are free, too. B^T has the form of A.
u     runs over the longer side n. W - A W B = G H^T - A^n G H^T B^n, which is a multiple of G H^T
      for subdiagonal operators of a square matrix: then A^n and B^n are multiples of the identity.
"""

import math
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear
from models.structured.descent import affordable_steps, best_of_restarts, descend
from models.structured.displacement_operators import promising_starts
from models.structured.low_displacement_fit import MOST, affordable_settling, settled
from models.structured.output_error import best_scale, regularised
from models.structured.weighted_shifts import applied, krylov, shifted_sum
from models.structures import LowDisplacementRank
from models.structures.low_displacement_rank import BANDS

RESTARTS, STEPS = 3, 200  # of a plain fit
# A smaller squared error than chance gives tells of a member, to which the valley is long: damped
# Gauss-Newton steps arrive within some ten where thousands of descent do not. They are for small
# matrices; a large one descends so many times longer.
NEAR, GOOD, FOUND, PATIENCE = 1e-1, 1e-5, 1e-8, 6
SEARCHES, MORE_SEARCHES, CLOSE = 24, 48, 2.5e-3  # of operators; more only for what is this near
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
            row, column, left, right = (tensor.to(exact) for tensor in self._tensors())
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
        error = best_of_restarts(
            self, weight, None, start, restarts=RESTARTS, steps=steps, finer=self._finer()
        )
        numbers = self.spec.parameter_count(rows=self.rows, columns=self.columns)
        if numbers < weight.numel() and FOUND < error < NEAR:
            self._follow_the_valley(target, start, PATIENCE * steps, generator)
        if second_moment is not None:
            self._rescale(target, regularised(second_moment))
            steps = min(steps, AWARE_STEPS)
            descend(self, weight, second_moment, steps=steps, finer=self._finer())

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

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            self.row_operator,
            self.column_operator,
            self.row_generator,
            self.column_generator,
        )

    def _finer(self) -> dict[str, float]:
        """An operator acts as often as a side is long: of 64 x 96 noise .87 is left, else .92."""
        share = max(self.rows, self.columns) ** -0.5
        return {"row_operator": share, "column_operator": share}

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

    def _follow_the_valley(
        self,
        target: Tensor,
        start: Callable[[int], None],
        steps: int,
        generator: torch.Generator,
    ) -> None:
        """Settle from here or, where that ends too early, from other starts; the best is kept.

        First come operators for which the matrix's own displacement has a low rank, which tell a
        member from a matrix that is only near to one.
        """
        numbers = sum(tensor.numel() for tensor in self._tensors())
        newton_steps = affordable_settling(target.numel(), numbers)
        if not newton_steps:
            descend(self, target, steps=steps, finer=self._finer())
            return
        tries: list[tuple[float, list[Tensor]]] = []

        def is_found(tensors: list[Tensor]) -> bool:
            found, error = settled(target, tensors, newton_steps, FOUND)
            tries.append((error, found))
            return error < GOOD

        other = generator.clone_state()  # the restarts stay what they are without searches
        bands, rank = len(self.row_operator), self.spec.rank

        def promising(most: int) -> Iterator[list[Tensor]]:
            for tensors in promising_starts(
                target, bands=bands, rank=rank, most=most, generator=other
            ):
                if settled(target, tensors, 0, FOUND)[1] < NEAR:
                    yield tensors

        def starts() -> Iterator[list[Tensor]]:
            yield [tensor.double() for tensor in self._tensors()]
            yield from promising(SEARCHES)
            for attempt in range(RESTARTS if newton_steps == MOST else 0):
                start(attempt)
                yield [tensor.double() for tensor in self._tensors()]
            if min(error for error, _ in tries) < CLOSE:
                yield from promising(MORE_SEARCHES)

        any(is_found(tensors) for tensors in starts())
        _, best = min(tries, key=itemgetter(0))
        for tensor, value in zip(self._tensors(), best, strict=True):
            tensor.copy_(value)

    def _rescale(self, target: Tensor, moment: Tensor | None) -> None:
        """The best multiple of what is there: never worse than zero, nor than it was."""
        best = best_scale(self.to_dense(), target, moment)
        self.row_generator.mul_(math.copysign(math.sqrt(abs(best)), best))
        self.column_generator.mul_(math.sqrt(abs(best)))
