"""The two-core einsum family by its seven exponents (Potapczynski et al., arXiv 2410.02117)."""

from collections.abc import Mapping
from math import log
from typing import Annotated, Literal, Self, final

from pydantic import Field, model_validator

from models.structures.base import check_choice
from models.structures.factorisation import split
from models.structures.two_cores import CoreSizes, TwoCores

Exponent = Annotated[float, Field(ge=0, le=1)]
TOLERANCE = 1e-6  # of a sum of exponents

PointName = Literal["dense", "low rank", "Kronecker", "tensor train", "Monarch", "BTT"]
# alpha, beta, gamma, delta, epsilon, phi; Monarch is the BTT without a rank of its own, as the
# Kronecker product is the tensor train without one.
NAMED_POINTS: Mapping[PointName, tuple[float, float, float, float, float, float]] = {
    "dense": (0, 0, 1, 0, 0, 1),
    "low rank": (1, 0, 0, 0, 1, 0),
    "Kronecker": (0.5, 0.5, 0, 0.5, 0.5, 0),
    "tensor train": (0.5, 0.5, 0, 0.5, 0.5, 0),
    "Monarch": (0.5, 0, 0.5, 0, 0.5, 0.5),
    "BTT": (0.5, 0, 0.5, 0, 0.5, 0.5),
}


@final
class Einsum(TwoCores):
    """Two cores whose indices have d^exponent steps, rows and columns each split by its three.

    `rho` is a power of the smaller side. ValueError where exponents of a side do not sum to 1, or
    where rho is beyond the rank that any block can have.
    """

    kind: Literal["einsum"] = "einsum"
    alpha: Exponent
    beta: Exponent
    gamma: Exponent
    delta: Exponent
    epsilon: Exponent
    phi: Exponent
    rho: Exponent = 0

    @classmethod
    def at(cls, point: PointName, *, rho: float = 0) -> "Einsum":
        """A member that has a name of its own, with this exponent of its rank."""
        check_choice("point", point, NAMED_POINTS)
        alpha, beta, gamma, delta, epsilon, phi = NAMED_POINTS[point]
        return cls(
            alpha=alpha, beta=beta, gamma=gamma, delta=delta, epsilon=epsilon, phi=phi, rho=rho
        )

    @model_validator(mode="after")
    def _check_exponents(self) -> Self:
        for names in (("alpha", "beta", "gamma"), ("delta", "epsilon", "phi")):
            total = sum(getattr(self, name) for name in names)
            if abs(total - 1) > TOLERANCE:
                told = ", ".join(f"{name} {getattr(self, name):g}" for name in names)
                raise ValueError(f"{told} sum up to {total:g}, but a side needs 1")
        if self.rho > self.most_rho + TOLERANCE:
            raise ValueError(
                f"rho is {self.rho:g}, but these exponents admit 0 to {self.most_rho:g}"
            )
        return self

    @property
    def most_rho(self) -> float:
        """The exponent of the largest rank that a block can have."""
        return min(self.alpha + self.delta, self.beta + self.epsilon)

    @property
    def omega(self) -> float:
        """Weight sharing: 0 where each number works in one place; hurts from scratch."""
        first, second = self.alpha + self.delta, self.beta + self.epsilon
        return min(first, second) - self._kept

    @property
    def psi(self) -> float:
        """The exponent of the matrix's rank: 1 is full."""
        left = 2 + self.rho - self.alpha - self.epsilon
        right = 2 + self.rho - self.beta - self.delta
        return min(1, left, right)

    @property
    def nu(self) -> float:
        """Compute per dimension: MACs grow as d^(1 + nu)."""
        return 1 + self.rho - self._kept

    @property
    def _kept(self) -> float:
        return max(min(self.alpha, self.epsilon), min(self.beta, self.delta))

    def sizes(self, *, rows: int, columns: int) -> CoreSizes:
        """Divisors near the powers, or the nearest sizes, padded up.

        A core that neither reads nor writes an index alone only scales the blocks of the other:
        one number of it is as good as many, and the other is the whole matrix.
        """
        gamma, alpha, beta = split(columns, (self.gamma, self.alpha, self.beta))
        phi, delta, epsilon = split(rows, (self.phi, self.delta, self.epsilon))
        if alpha == delta == 1:
            return CoreSizes(1, columns, 1, 1, rows, 1, 1)
        if beta == epsilon == 1:
            return CoreSizes(columns, 1, 1, rows, 1, 1, 1)
        most = min(alpha * delta, beta * epsilon)
        rho = min(most, round(min(rows, columns) ** self.rho))
        return CoreSizes(alpha, beta, gamma, delta, epsilon, phi, rho)

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit every matrix: exponents scale with it."""

    def with_terms(self, terms: int, *, rows: int, columns: int) -> "Einsum | None":
        """The same exponents but for rho, which gives as many terms, if any does."""
        smaller = min(rows, columns)
        exponent = log(terms) / log(smaller) if terms > 1 and smaller > 1 else 0.0
        found = self.model_copy(update={"rho": exponent})
        reached = found.sizes(rows=rows, columns=columns).rho == terms
        return found if reached and exponent <= self.most_rho else None

    def in_words(self) -> str:
        """`BTT as einsum, rank d^0.25`; where it has no name, all exponents."""
        own = (self.alpha, self.beta, self.gamma, self.delta, self.epsilon, self.phi)
        names = [name for name, point in NAMED_POINTS.items() if point == own]
        rank = f", rank d^{self.rho:g}" if self.rho else ""
        if names:  # where two share a point, the second is the one with a rank
            return f"{names[-1 if self.rho else 0]} as einsum{rank}"
        return f"einsum ({', '.join(f'{one:g}' for one in own)}){rank}"
