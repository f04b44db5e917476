"""CP or rank-R: W[i] = sum_t a_1[i, t] o .. o a_d[i, t], outer products over the column's modes."""

from math import prod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, draw_normal
from models.structured.descent import descend
from models.structured.output_error import best_scale
from models.structures import Cp

SWEEPS, RESTARTS = 100, 3
STEPS = 40  # L-BFGS given C: some 0.5 s each at 768 x 3072
# Nearly parallel terms may grow without end, as the best approximation need not exist (de Silva &
# Lim 2008): a little damping keeps them finite.
DAMPING = 1e-9


@final
class CpLinear(StructuredLinear[Cp]):
    """y = W x + b; W is built once for a batch, which is cheaper than to contract each input."""

    def __init__(
        self,
        structure: Cp,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.factors = nn.ParameterList(
            torch.zeros(rows, structure.terms, mode, dtype=dtype) for mode in structure.column_modes
        )

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x."""
        return functional.linear(x, self.to_dense(), bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Outer products one mode after the other; the last sums up the terms."""
        *before, last = self.factors
        outer = outer_products(before)
        found: Tensor = torch.bmm(outer.transpose(1, 2), last)
        return found.reshape(self.rows, -1)[:, : self.columns]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """An SVD of each row's matrix is exact; alternating least squares beyond two modes."""
        modes = self.spec.column_modes
        tensors = functional.pad(weight.double(), (0, prod(modes) - self.columns))
        tensors = tensors.reshape(self.rows, *modes)
        if len(modes) == 2:
            found = matrix_terms(tensors, self.spec.terms)
        else:
            # Starts are of unit size: beside much smaller numbers, what is left of them would show.
            size = float(tensors.abs().max()) or 1.0
            *others, last = alternate(tensors / size, self.spec.terms, generator)
            found = [*others, size * last]
        for factor, numbers in zip(self.factors, found, strict=True):
            factor.copy_(numbers)
        if second_moment is not None:
            self.factors[0].mul_(best_scale(self.to_dense(), weight, second_moment))
            descend(self, weight, second_moment, steps=STEPS)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw all vectors, then scale the last: few numbers that are shared vary much."""
        for factor, fan_in in zip(self.factors, self._fan_ins(), strict=True):
            draw_normal(factor, fan_in=fan_in, generator=generator)
        self.factors[-1].mul_((self.rows / self.to_dense().square().sum()).sqrt())

    def fan_ins(self) -> dict[str, float]:
        """Its mode, as if contracted from the last to the first, which sums up the terms, too."""
        return {f"factors.{index}": fan_in for index, fan_in in enumerate(self._fan_ins())}

    def _fan_ins(self) -> list[int]:
        first, *others = self.spec.column_modes
        return [self.spec.terms * first, *others]


def outer_products(
    factors: list[Float[Tensor, "rows terms _"]],
) -> Float[Tensor, "rows terms entries"]:
    """The terms of the first modes; as matrix products, so that a FLOP counter sees them."""
    found, *others = factors
    for factor in others:
        rows, terms, _ = factor.shape
        pairs = torch.bmm(found.flatten(0, 1)[:, :, None], factor.flatten(0, 1)[:, None, :])
        found = pairs.reshape(rows, terms, -1)
    return found


def matrix_terms(
    matrices: Float[Tensor, "rows one two"], terms: int
) -> list[Float[Tensor, "rows terms _"]]:
    """The best sum of outer products of each matrix."""
    left, singular, right = torch.linalg.svd(matrices, full_matrices=False)
    root = singular[:, :terms, None].sqrt()
    return [left.transpose(1, 2)[:, :terms] * root, right[:, :terms] * root]


def alternate(
    tensors: Float[Tensor, "rows ..."], terms: int, generator: torch.Generator
) -> list[Float[Tensor, "rows terms _"]]:
    """CP-ALS for all rows at once; each row keeps the best of several starts, or zero."""
    best = tensors.flatten(1).square().sum(dim=1)
    kept = [tensors.new_zeros(len(tensors), terms, mode) for mode in tensors.shape[1:]]
    for _ in range(RESTARTS):
        factors = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in kept]
        for _ in range(SWEEPS):
            for index, mode in enumerate(tensors.shape[1:]):
                others = [one for other, one in enumerate(factors) if other != index]
                outer = outer_products(others)
                unfolded = tensors.movedim(index + 1, -1).reshape(len(tensors), -1, mode)
                gram = outer @ outer.mT
                mean = gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
                noise = DAMPING * mean + torch.finfo(gram.dtype).tiny
                gram = gram + noise * torch.eye(terms).to(gram)
                target = outer @ unfolded + noise * factors[index]
                factors[index] = torch.linalg.solve(gram, target)
                if index + 1 < len(factors):
                    scale = factors[index].norm(dim=2, keepdim=True)
                    tiny = torch.finfo(scale.dtype).tiny
                    factors[index] = factors[index] / scale.clamp(min=tiny)
        found = outer_products(factors[:-1]).mT @ factors[-1]
        errors = (found.flatten(1) - tensors.flatten(1)).square().sum(dim=1)
        better = errors < best
        best = torch.where(better, errors, best)
        kept = [
            torch.where(better[:, None, None], one, old)
            for one, old in zip(factors, kept, strict=True)
        ]
    return kept
