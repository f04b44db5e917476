"""STTP: W = U diag(s) V^T with U and V as tensor trains of orthonormal cores."""

from collections.abc import Iterator
from math import prod
from typing import Annotated, Literal, final

from pydantic import Field, PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole
from models.structures.factorisation import modes_in_words, product_in_words
from models.structures.frames import Spectrum, Train

Modes = Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=32)]


@final
class Sttp(StructureSpec):
    """The spectral tensor train (Obukhov et al., AISTATS 2021, arXiv 2103.04217).

    The modes are the digits of a row's and of a column's index, the fastest first, padded up where
    their product is more than the matrix has. All ranks inside a train are at most `inner_rank`,
    which some of them reach, or which is 1 where both trains are a single core.
    """

    kind: Literal["sttp"] = "sttp"
    rank: PositiveInt
    inner_rank: PositiveInt
    row_modes: Modes
    column_modes: Modes
    spectrum: Spectrum = "free"

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit modes whose product is less than twice the side, and ranks that trains can use."""
        where = matrix_in_words(rows=rows, columns=columns)
        for name, modes, side in (
            ("row_modes", self.row_modes, rows),
            ("column_modes", self.column_modes, columns),
        ):
            high = max(side, 2 * side - 1)
            argument = product_in_words(name, modes)
            check_range(argument, prod(modes), low=side, high=high, where=where)
        high = min(rows, columns)
        for modes in (self.row_modes, self.column_modes):
            if len(modes) > 1:
                high = min(high, self.inner_rank * modes[-1])
        inner = f"{where} with an inner rank of {self.inner_rank}"
        check_range("rank", self.rank, low=1, high=high, where=inner)
        most = most_inner_rank(self.rank, self.row_modes, self.column_modes)
        where += (
            f" in {modes_in_words(self.row_modes)} by {modes_in_words(self.column_modes)} modes"
        )
        where += f" with a rank of {self.rank}"
        check_range("inner_rank", self.inner_rank, low=1, high=most, where=where)

    def sides(self, *, rows: int, columns: int) -> tuple[Train, Train]:
        """The trains of U and V; with a unit spectrum V need only be known as a space."""
        return (
            Train(rows, self.row_modes, self._ranks(self.row_modes)),
            Train(
                columns,
                self.column_modes,
                self._ranks(self.column_modes),
                reduced=self.spectrum == "unit",
            ),
        )

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """The manifold's dimension: sum R_(k-1) n_k R_k - sum R_k^2 over the whole train.

        With a unit spectrum, r(r + 1)/2 fewer.
        """
        frames = sum(side.parameter_count() for side in self.sides(rows=rows, columns=columns))
        return frames + (0 if self.spectrum == "unit" else self.rank)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """Both frames, each cut where that costs least and merged between the cuts.

        A group of cores from rank Q to rank R, with digits worth d before it, takes Q R P / d of a
        padded side P; a frame in one piece takes r n. Merging, and making the cores from
        reflectors, is done once for all inputs, and not counted.
        """
        return sum(side.mac_count() for side in self.sides(rows=rows, columns=columns))

    def larger(self, *, rows: int, columns: int) -> Iterator["Sttp"]:
        """Yield one rank more, and one inner rank more, where they fit."""
        more = self.model_copy(update={"rank": self.rank + 1})
        try:
            more.check_fits(rows=rows, columns=columns)
        except ValueError:
            pass
        else:
            yield more
        if self.inner_rank < most_inner_rank(self.rank, self.row_modes, self.column_modes):
            yield self.model_copy(update={"inner_rank": self.inner_rank + 1})

    def in_words(self) -> str:
        """`spectral tensor train, rank 4, inner 8` and how its spectrum is kept, if it is."""
        kept = "" if self.spectrum == "free" else f", {self.spectrum} spectrum"
        return f"spectral tensor train, rank {self.rank}, inner {self.inner_rank}{kept}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the two frames along their edges: they are never stored as wide as they look."""
        modes = f"{'·'.join(map(str, self.row_modes))} x {'·'.join(map(str, self.column_modes))}"
        yield whole(rows=rows, columns=columns, tone="tensor network", opacity=0.2)
        yield Patch(0, rows, 0, self.rank, "tensor network", 0.5, f"a train of {modes}")
        yield Patch(0, self.rank, 0, columns, "tensor network", 0.5, f"a train of {modes}")

    def _ranks(self, modes: tuple[int, ...]) -> tuple[int, ...]:
        return (
            1,
            *(min(self.inner_rank, most) for most in _most_inside(self.rank, modes)),
            self.rank,
        )


def most_inner_rank(rank: int, *sides: Modes) -> int:
    """The largest rank inside of trains of these modes that end in a rank; 1 without an inside."""
    return max((most for modes in sides for most in _most_inside(rank, modes)), default=1)


def _most_inside(rank: int, modes: Modes) -> Iterator[int]:
    """Yield what each place can use: no more than the rows before, or than what comes after."""
    before = 1
    for cut, mode in enumerate(modes[:-1], start=1):
        before *= mode
        yield min(before, rank * prod(modes[cut:]))
