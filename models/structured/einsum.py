"""The two-core einsum family: the cores, indices and sizes that seven exponents ask for."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from models.structured.error_curve import ErrorCurve
from models.structured.two_cores import TwoCoresLinear
from models.structured.two_cores_curve import error_curve as terms_curve
from models.structures import Einsum


@final
class EinsumLinear(TwoCoresLinear[Einsum]):
    """y = sum over what either core reads of A B x, plus b (arXiv 2410.02117)."""


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    structure: Einsum,
) -> ErrorCurve:
    """Every rank at once for the other six exponents, exact where they divide the sides."""
    if not isinstance(structure, Einsum):
        kind = type(structure).__name__
        raise TypeError(f"structure is a {kind}, but this curve admits an Einsum")
    smallest = structure.model_copy(update={"rho": 0.0})
    return terms_curve(weight, second_moment, smallest)
