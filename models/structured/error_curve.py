"""Cost and error of the sizes of one structure on one matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import TypeVar

from models.structures import Structure
from models.structures.base import check_number

S = TypeVar("S", default=Structure)


@dataclass(frozen=True, slots=True)
class ErrorCurve(Generic[S]):
    """Sizes, the cheapest first; `structure` gives the spec of the size at an index.

    Errors are relative and squared: of the matrix, or of the outputs where C was given.
    """

    macs: Int[Tensor, " sizes"]
    parameters: Int[Tensor, " sizes"]
    errors: Float[Tensor, " sizes"]
    structure: Callable[[int], S]

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
            check_number(name, most, where="a size")
            if most < int(costs.min()):
                admitted = f"this curve admits {int(costs.min())} and more"
                raise ValueError(f"{name} is {most}, but {admitted}")
            affordable = affordable.masked_fill(costs > most, torch.inf)
        if not affordable.isfinite().any():
            raise ValueError(f"no size takes {macs} MACs and {parameters} parameters or fewer")
        return self.structure(int(affordable.argmin()))


def remaining(energies: Float[Tensor, " terms"]) -> Float[Tensor, " terms"]:
    """The share of the energy that is left when the first 1, 2, ... terms are taken away."""
    total = energies.sum()
    left = energies.flip(0).cumsum(0).flip(0)
    left = torch.cat([left[1:], left.new_zeros(1)])
    return left / total if total > 0 else left
