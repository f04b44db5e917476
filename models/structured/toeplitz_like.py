"""Toeplitz-like: W[i, j] = 1/2 sum over u of G[i + u] . H[j + u], applied by Fourier transforms.

G, H  the generators, `rank` numbers for every row and for every column of the padded matrix.
u     runs over the longer side. Both indices wrap around, the longer side's with a minus sign.
W[i, j] - W[i + 1, j + 1] = G[i] . H[j] follows, wraps included: with the cyclic shifts A and B of
    rows and columns, A W - W B = (A G) H^T.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias
from models.structured.descent import affordable_steps, descend
from models.structured.fourier import as_called, folded, signal, spectrum
from models.structured.output_error import best_scale, output_energy, regularised
from models.structures import ToeplitzLike

STEPS = 400  # of a fit, from the truncated displacement
FITTED = 1e-18  # a relative squared error that is only rounding
# A small squared error tells that it is near to a member, which is worth more steps.
NEAR, FOUND, PATIENCE = 1e-2, 1e-9, 4


@final
class ToeplitzLikeLinear(StructuredLinear[ToeplitzLike]):
    """Two correlations: a_k[u] = sum_j H_k[j + u] x_j, then y_i = 1/2 sum_k,u G_k[i + u] a_k[u]."""

    def __init__(
        self,
        structure: ToeplitzLike,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.heights, self.widths = structure.padded(rows=rows, columns=columns)
        self.signs = structure.signs(rows=rows, columns=columns)
        self.lengths = structure.lengths(rows=rows, columns=columns)
        rank = structure.rank
        self.row_generator = nn.Parameter(torch.zeros(rank, self.heights, dtype=dtype))
        self.column_generator = nn.Parameter(torch.zeros(rank, self.widths, dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x; both transforms of the generators are made once for all inputs."""
        (row_sign, column_sign), (along_rows, along_columns) = self.signs, self.lengths
        kernel = spectrum(self.column_generator, along_columns)
        inner = signal(kernel * spectrum(x, along_columns).conj().unsqueeze(-2), along_columns)
        inner = folded(inner, self.widths, sign=column_sign)
        if self.widths > self.heights:  # G repeats itself over the longer side
            inner = inner.unflatten(-1, (-1, self.heights)).sum(-2)
        elif self.heights > self.widths:  # H does, and what it makes of x
            inner = inner.repeat(*[1] * (inner.dim() - 1), self.heights // self.widths)
        kernel = spectrum(self.row_generator, along_rows) / 2
        outer = signal((kernel * spectrum(inner, along_rows).conj()).sum(-2), along_rows)
        y = folded(outer, self.heights, sign=row_sign)[..., : self.rows]
        return add_bias(as_called(y, x), bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The running sums of G H^T along its wrapped diagonals."""
        tall = self.heights > self.widths
        displacement = self.row_generator.T @ self.column_generator
        padded = unshifted(displacement.T).T if tall else unshifted(displacement)
        return padded[: self.rows, : self.columns]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Truncate the displacement, which is exact for a member, then descend."""
        steps = affordable_steps(self, most=STEPS)
        target = weight.double()
        energy = output_energy(target)
        tall = self.heights > self.widths
        flat = target.T if tall else target
        length = max(self.heights, self.widths)
        displacement = displaced(functional.pad(flat, (0, length - flat.shape[1])))
        left, singular, right = torch.linalg.svd(displacement, full_matrices=False)
        starts = [(left * singular, right)]
        if length > flat.shape[1]:
            starts.append(completed(flat, length=length, rank=self.spec.rank))
        errors = [self._set_terms(terms, target) for terms in starts]
        if errors[0] < errors[-1]:
            self._set_terms(starts[0], target)
        if min(errors) > FITTED * energy:
            error = descend(self, weight, steps=steps)
            if FOUND < error < NEAR:
                descend(self, weight, steps=PATIENCE * steps)
        if second_moment is not None:
            self._rescale(target, regularised(second_moment))
            descend(self, weight, second_moment, steps=steps)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw both generators, and scale them to the variance that is asked for."""
        for tensor in (self.row_generator, self.column_generator):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        size = (self.rows / self.to_dense().square().sum()) ** 0.25
        self.row_generator.mul_(size)
        self.column_generator.mul_(size)

    def fan_ins(self) -> dict[str, float]:
        """The columns, then what all correlations with the rows' generator sum up."""
        return {
            "column_generator": self.columns,
            "row_generator": self.spec.rank * self.heights,
        }

    def _set_terms(self, terms: tuple[Tensor, Tensor], target: Tensor) -> float:
        """Take over the leading terms of a displacement, at their best scale; the squared error."""
        shorter, longer = terms
        left, upper = torch.linalg.qr(shorter[:, : self.spec.rank])
        inner, singular, right = torch.linalg.svd(
            upper @ longer[: self.spec.rank], full_matrices=False
        )
        scale = singular.sqrt()
        generators = (left @ inner * scale).T, right * scale[:, None]
        tall = self.heights > self.widths
        self.row_generator.copy_(generators[tall])
        self.column_generator.copy_(generators[not tall])
        self._rescale(target, None)
        return float(output_energy(target - self.to_dense().double()))

    def _rescale(self, target: Tensor, moment: Tensor | None) -> None:
        """The best multiple of what is there: never worse than zero, nor than it was."""
        best = best_scale(self.to_dense(), target, moment)
        self.row_generator.mul_(math.copysign(math.sqrt(abs(best)), best))
        self.column_generator.mul_(math.sqrt(abs(best)))


def displaced(
    matrix: Float[Tensor, "shorter longer"],
) -> Float[Tensor, "shorter longer"]:
    """W[i, j] - W[i + 1, j + 1], both wrapped around, the longer side with a minus sign."""
    shifted = matrix.roll((-1, -1), (0, 1))
    shifted[:, -1] *= -1
    return matrix - shifted


def completed(
    matrix: Float[Tensor, "shorter longer"], *, length: int, rank: int
) -> tuple[Float[Tensor, "shorter rank"], Float[Tensor, "rank length"]]:
    """Terms of the displacement of a matrix whose longer side is yet to be padded to this length.

    All columns of the displacement but those that touch the padding are known, and for a member
    their space is that of all. What is left is linear: a wrapped diagonal sums up to twice its
    start.
    """
    longer = matrix.shape[1]
    known = displaced(matrix)[:, :-1]
    space, singular, right = torch.linalg.svd(known, full_matrices=False)
    space = space[:, :rank]
    inner = functional.pad(singular[:rank, None] * right[:rank], (0, length - longer + 1))
    due = matrix[:, :1] - unshifted(space @ inner)[:, :1]
    touching = torch.cat([space.roll(-place, 0) for place in range(longer - 1, length)], 1)
    found = torch.linalg.lstsq(touching, 2 * due, driver="gelsd").solution
    inner[:, longer - 1 :] = found.view(-1, space.shape[1]).T
    return space, inner


def unshifted(
    displacement: Float[Tensor, "shorter longer"],
) -> Float[Tensor, "shorter longer"]:
    """The matrix that is displaced by this: along a wrapped diagonal, its running sum.

    A diagonal that starts at (i, 0) comes back to minus its start, which is half of its whole sum.
    """
    shorter, longer = displacement.shape
    column = torch.arange(longer, device=displacement.device)
    start = torch.arange(shorter, device=displacement.device)[:, None]
    steps = displacement[(start + column) % shorter, column]
    sums = steps.cumsum(1)
    values = sums[:, -1:] / 2 - sums + steps
    return values[(start - column) % shorter, column]
