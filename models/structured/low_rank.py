"""Low rank: W = U V^T, U of `rows x rank` and V^T of `rank x columns`."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, draw_normal
from models.structured.checks import check_target
from models.structured.error_curve import ErrorCurve, remaining
from models.structured.output_error import latest, outputs, regularised
from models.structures import LowRank


@final
class LowRankLinear(StructuredLinear[LowRank]):
    """y = U (V^T x) + b."""

    def __init__(
        self,
        structure: LowRank,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.row_factor = nn.Parameter(torch.zeros(rows, structure.rank, dtype=dtype))
        self.column_factor = nn.Parameter(torch.zeros(structure.rank, columns, dtype=dtype))

    @classmethod
    def from_factors(
        cls,
        row_factor: Float[Tensor, "rows rank"],
        column_factor: Float[Tensor, "rank columns"],
        *,
        bias: Float[Tensor, " rows"] | None = None,
    ) -> "LowRankLinear":
        """The layer with copies of these factors."""
        layer = cls(
            LowRank(rank=row_factor.shape[1]),
            rows=row_factor.shape[0],
            columns=column_factor.shape[1],
            bias=bias is not None,
            dtype=row_factor.dtype,
        )
        with torch.no_grad():
            layer.row_factor.copy_(row_factor)
            layer.column_factor.copy_(column_factor)
        layer.set_bias(bias)
        return layer

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x through the narrow middle."""
        return functional.linear(functional.linear(x, self.column_factor), self.row_factor, bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The factors, multiplied."""
        return self.row_factor @ self.column_factor

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """The best approximation of this rank, of the weight or of its outputs: both are exact."""
        row_factor, column_factor = factors(weight, self.spec.rank, second_moment)
        self.row_factor.copy_(row_factor)
        self.column_factor.copy_(column_factor)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw both factors, each with its own fan-in."""
        draw_normal(self.column_factor, fan_in=self.columns, generator=generator)
        draw_normal(self.row_factor, fan_in=self.spec.rank, generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """The columns, then the rank."""
        return {"column_factor": self.columns, "row_factor": self.spec.rank}


# Entries of a matrix for which the whole SVD takes seconds.
LARGE = 2**18

# The curvature is measured at one point: outputs it finds irrelevant still count for this much.
DAMPING = 1e-2


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Every best low-rank approximation of one matrix at once: rank r keeps the first r terms.

    Row and column factors of a term have equal norms; `energies` are the squared singular values.
    """

    row_factor: Float[Tensor, "rows terms"]
    column_factor: Float[Tensor, "terms columns"]
    energies: Float[Tensor, " terms"]


def decompose(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    curvature: Float[Tensor, "rows rows"] | None = None,
) -> Decomposition:
    """The SVD of G^(1/2) W C^(1/2), taken back by their inverses, in float64.

    Optimal for the layer's output; with the curvature G of the loss in that output, for the loss to
    second order where C and G are independent (Martens & Grosse, ICML 2015, arXiv 1503.05671).
    """
    matrix = weight.detach().double()
    # Any square root does: with C = L L^T the error is the Frobenius norm of (W - What) L.
    lower = None if second_moment is None else torch.linalg.cholesky(regularised(second_moment))
    upper = None if curvature is None else torch.linalg.cholesky(regularised(curvature, DAMPING)).T
    if lower is not None:
        matrix = matrix @ lower
    if upper is not None:
        matrix = upper @ matrix
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    left = left * singular
    if lower is not None:
        right = torch.linalg.solve_triangular(lower, right, upper=False, left=False)
    if upper is not None:
        left = torch.linalg.solve_triangular(upper, left, upper=True)
    row_factor, column_factor = balanced(left, right)
    return Decomposition(row_factor, column_factor, singular.square())


def balanced(
    row_factor: Float[Tensor, "rows terms"], column_factor: Float[Tensor, "terms columns"]
) -> tuple[Float[Tensor, "rows terms"], Float[Tensor, "terms columns"]]:
    """The same terms with equal norms on both sides, which gradient descent likes."""
    scale = balancing(row_factor.norm(dim=0), column_factor.norm(dim=1))
    return row_factor * scale, column_factor / scale[:, None]


def balancing(left: Float[Tensor, " *terms"], right: Float[Tensor, " *terms"]) -> Tensor:
    """What to multiply norms on the left by, and divide those on the right by, to make them equal.

    A term with zeros on one side gets on the other what is usual: else a descent that brings it to
    life would depend on the scale of the matrix.
    """
    live = (left > 0) & (right > 0)
    usual = (left * right)[live].mean().sqrt() if live.any() else left.new_ones(())
    one = torch.ones_like(left)
    to_left, to_right = usual / left.where(left > 0, one), right.where(right > 0, one) / usual
    alone = torch.where(left > 0, to_left, torch.where(right > 0, to_right, one))
    return torch.where(live, (right / left.where(live, one)).sqrt(), alone)


def factors(
    weight: Float[Tensor, "rows columns"],
    rank: int,
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
    """The two factors of the best approximation of this rank, in the weight's dtype."""
    LowRank(rank=rank).check_fits(rows=weight.shape[0], columns=weight.shape[1])
    if weight.numel() >= LARGE:
        found = leading_factors(weight.detach().double(), rank, second_moment)
        return found[0].to(weight.dtype), found[1].to(weight.dtype)
    whole = decompose(weight, second_moment)
    return (
        whole.row_factor[:, :rank].to(weight.dtype),
        whole.column_factor[:rank].to(weight.dtype),
    )


def leading_factors(
    matrix: Float[Tensor, "rows columns"],
    rank: int,
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
    """The same from the smaller Gram matrix, in much less time than an SVD takes.

    Singular values below 1e-8 of the largest drown in its rounding, as the errors they leave do.
    """
    whitened = matrix
    if second_moment is not None:
        whitened = matrix @ torch.linalg.cholesky(regularised(second_moment))
    # The best approximation is a projection of the columns, and only needs their leading space.
    if len(matrix) <= matrix.shape[1]:
        basis = torch.linalg.eigh(whitened @ whitened.T).eigenvectors[:, -rank:]
    else:
        directions = torch.linalg.eigh(whitened.T @ whitened).eigenvectors[:, -rank:]
        basis = torch.linalg.qr(whitened @ directions).Q
    return balanced(basis, basis.T @ matrix)


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> ErrorCurve:
    """Every rank at once, exact for the weight and for its outputs, in float64."""
    check_target(weight, second_moment)
    rows, columns = weight.shape
    energies = latest("low rank", weight, second_moment, lambda: _energies(weight, second_moment))
    sizes = (rows + columns) * torch.arange(1, min(rows, columns) + 1)
    return ErrorCurve(
        macs=sizes,
        parameters=sizes,
        errors=remaining(energies),
        member=lambda index: LowRank(rank=index + 1),
    )


def _energies(weight: Tensor, second_moment: Tensor | None) -> Float[Tensor, " terms"]:
    """The squared singular values of W or, given C = L L^T, of W L."""
    rows, columns = weight.shape
    matrix = weight.detach().double()
    # The smaller Gram matrix has the squared singular values in a fraction of an SVD's time.
    if rows <= columns:
        gram = (matrix if second_moment is None else outputs(weight, second_moment)) @ matrix.T
    else:
        gram = matrix.T @ matrix
        if second_moment is not None:
            lower = torch.linalg.cholesky(regularised(second_moment))
            gram = lower.T @ gram @ lower
    energies: Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    return energies
