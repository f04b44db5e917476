"""A grid of sums of Kronecker products: every structure whose product is two contractions.

W[(phi, delta, epsilon), (gamma, alpha, beta)] = sum_rho A[alpha, gamma, delta, phi, rho]
B[beta, gamma, epsilon, phi, rho]: block (phi, gamma) of a grid is a sum of rho products A (x) B.
    alpha, beta, gamma   input numbers that A, that B, that both cores read
    delta, epsilon, phi  output numbers that A, that B, that both cores write
    rho                  terms summed up
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from models.structures.base import Patch, StructureSpec, whole


@dataclass(frozen=True, slots=True)
class CoreSizes:
    """How long each of the seven indices is."""

    alpha: int
    beta: int
    gamma: int
    delta: int
    epsilon: int
    phi: int
    rho: int

    @property
    def parameter_count(self) -> int:
        """Both cores."""
        shared = self.gamma * self.phi * self.rho
        return shared * (self.alpha * self.delta + self.beta * self.epsilon)

    @property
    def left_first(self) -> bool:
        """Whether contracting A before B takes no more than B before A."""
        return self._left_first_macs <= self._right_first_macs

    @property
    def mac_count(self) -> int:
        """Multiply-accumulates in the cheaper order, the one that is run."""
        return min(self._left_first_macs, self._right_first_macs)

    @property
    def most_terms(self) -> int:
        """As many terms as any block can need."""
        return min(self.alpha * self.delta, self.beta * self.epsilon)

    @property
    def _left_first_macs(self) -> int:
        middle = self.beta * self.gamma * self.delta * self.phi * self.rho
        return middle * (self.alpha + self.epsilon)

    @property
    def _right_first_macs(self) -> int:
        middle = self.alpha * self.gamma * self.epsilon * self.phi * self.rho
        return middle * (self.beta + self.delta)


class TwoCores(StructureSpec):
    """A structure of two cores, which states the length of their indices."""

    @abstractmethod
    def sizes(self, *, rows: int, columns: int) -> CoreSizes:
        """The lengths, whose products are at least `rows` and `columns`."""

    @abstractmethod
    def with_terms(self, terms: int, *, rows: int, columns: int) -> Self | None:
        """The same but for its terms; None where no block can have as many."""

    def larger(self, *, rows: int, columns: int) -> Iterator[Self]:
        """Yield one term more."""
        terms = self.sizes(rows=rows, columns=columns).rho + 1
        if found := self.with_terms(terms, rows=rows, columns=columns):
            yield found

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """Both cores, with what padding they hold."""
        return self.sizes(rows=rows, columns=columns).parameter_count

    def mac_count(self, *, rows: int, columns: int) -> int:
        """Multiply-accumulates of two contractions: a number that is shared works repeatedly."""
        return self.sizes(rows=rows, columns=columns).mac_count

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the first block of the grid, and in it the two factors of one term."""
        sizes = self.sizes(rows=rows, columns=columns)
        tall, wide = sizes.delta * sizes.epsilon, sizes.alpha * sizes.beta
        yield whole(rows=rows, columns=columns, tone="tensor network", opacity=0.12)
        yield Patch(0, min(rows, tall), 0, min(columns, wide), "tensor network", 0.25)
        for core, height, width, opacity in (
            ("A", sizes.delta, sizes.alpha, 0.5),
            ("B", sizes.epsilon, sizes.beta, 0.75),
        ):
            title = f"{core}: {height} x {width}, {sizes.rho} for each block"
            yield Patch(0, height, 0, width, "tensor network", opacity, title)
