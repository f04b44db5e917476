"""Cost and error of the sizes of one structure on one matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import TypeVar

from models.structures import Structure
from models.structures.base import check_range

S = TypeVar("S", default=Structure)

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # true is no index


@dataclass(frozen=True, slots=True)
class ErrorCurve(Generic[S]):
    """Sizes, the cheapest first; `member` gives the spec of the size at an index that there is.

    Errors are relative and squared: of the matrix, or of the outputs where C was given.
    """

    macs: Int[Tensor, " sizes"]
    parameters: Int[Tensor, " sizes"]
    errors: Float[Tensor, " sizes"]
    member: Callable[[int], S]

    def structure(self, index: int | Int[Tensor, ""]) -> S:
        """The spec of the size at an index, from 0 up; ValueError where there is none."""
        one = isinstance(index, Tensor) and not index.dim() and index.dtype in WHOLE
        place = int(index) if one else index
        check_range("index", place, low=0, high=len(self.errors) - 1, where="this curve")
        return self.member(int(place))

    def best_within(self, macs: int | None = None, *, parameters: int | None = None) -> S:
        """The size of least error that takes at most so many MACs, or stores so many numbers.

        ValueError where none does, and of a curve that is empty.
        """
        if not len(self.errors):
            raise ValueError("the curve is empty: no size of this kind is cheaper than this matrix")
        affordable = self.errors
        limits = (("macs", macs, self.macs), ("parameters", parameters, self.parameters))
        for name, most, costs in limits:
            if most is None:
                continue
            check_range(name, most, low=int(costs.min()), where="this curve")
            limit = min(int(most), int(costs.max()))  # the comparison is of 64 bits
            affordable = affordable.masked_fill(costs > limit, torch.inf)
        if not affordable.isfinite().any():
            if macs is None or parameters is None:
                raise ValueError("no size within that has an error that is a number")
            raise ValueError(f"no size takes {macs} MACs and {parameters} parameters or fewer")
        return self.structure(int(affordable.argmin()))


def remaining(energies: Float[Tensor, " terms"]) -> Float[Tensor, " terms"]:
    """The share of the energy that is left when the first 1, 2, ... terms are taken away."""
    total = energies.sum()
    left = energies.flip(0).cumsum(0).flip(0)
    left = torch.cat([left[1:], left.new_zeros(1)])
    return left / total if total > 0 else left
