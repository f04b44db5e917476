"""STTP: W = U diag(s) V^T with U and V as tensor trains of orthonormal cores."""

from collections.abc import Iterator
from itertools import accumulate
from math import prod
from operator import mul
from typing import Annotated, Literal, final

from pydantic import Field, PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole
from models.structures.frames import Spectrum, Train

Modes = Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=32)]


@final
class Sttp(StructureSpec):
    """The spectral tensor train (Obukhov et al., AISTATS 2021, arXiv 2103.04217).

    The modes are the digits of a row's and of a column's index, the fastest first, padded up where
    their product is more than the matrix has. All ranks inside a train are at most `inner_rank`.
    """

    kind: Literal["sttp"] = "sttp"
    rank: PositiveInt
    inner_rank: PositiveInt
    row_modes: Modes
    column_modes: Modes
    spectrum: Spectrum = "free"

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit modes whose product is less than twice the side, and ranks that frames can have."""
        where = matrix_in_words(rows=rows, columns=columns)
        for name, modes, side in (
            ("row_modes", self.row_modes, rows),
            ("column_modes", self.column_modes, columns),
        ):
            high = max(side, 2 * side - 1)
            check_range(f"product of {name}", prod(modes), low=side, high=high, where=where)
        high = min(rows, columns)
        for modes in (self.row_modes, self.column_modes):
            if len(modes) > 1:
                high = min(high, self.inner_rank * modes[-1])
        where += f" with an inner rank of {self.inner_rank}"
        check_range("rank", self.rank, low=1, high=high, where=where)

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
        """Yield one rank more, and one inner rank more, where they fit and change anything."""
        more = self.model_copy(update={"rank": self.rank + 1})
        try:
            more.check_fits(rows=rows, columns=columns)
        except ValueError:
            pass
        else:
            yield more
        wider = self.model_copy(update={"inner_rank": self.inner_rank + 1})
        sides = {"rows": rows, "columns": columns}
        if wider.sides(**sides) != self.sides(**sides):
            yield wider

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
        """No larger than the inner rank, than the rows before, or than what comes after can use."""
        before = [1, *accumulate(modes, mul)]
        inner = (
            min(self.inner_rank, before[cut], self.rank * prod(modes[cut:]))
            for cut in range(1, len(modes))
        )
        return (1, *inner, self.rank)
