"""SVDP: W = U diag(s) V^T with orthonormal U and V, stored without redundancy."""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole
from models.structures.frames import Spectrum, Train


@final
class Svdp(StructureSpec):
    """A compact SVD, U and V as products of Householder reflections (arXiv 2103.04217).

    A bounded spectrum bounds the layer's Lipschitz constant by 1; a unit one makes W an isometry
    between two spaces of `rank` dimensions.
    """

    kind: Literal["svdp"] = "svdp"
    rank: PositiveInt
    spectrum: Spectrum = "free"

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit ranks up to the smaller side."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_range("rank", self.rank, low=1, high=min(rows, columns), where=where)

    def sides(self, *, rows: int, columns: int) -> tuple[Train, Train]:
        """The frames U and V, of a single core each.

        With a unit spectrum one rotation may pass from U to V, so V need only be known as a space.
        """
        return (
            Train(rows, (rows,), (1, self.rank)),
            Train(columns, (columns,), (1, self.rank), reduced=self.spectrum == "unit"),
        )

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """The manifold's dimension r(m + n) - r^2, or r(m + n) - r(3r + 1)/2 of unit spectrum."""
        frames = sum(side.parameter_count() for side in self.sides(rows=rows, columns=columns))
        return frames + (0 if self.spectrum == "unit" else self.rank)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """Both frames. Making them from reflectors is done once for all inputs, and not counted."""
        return self.rank * (rows + columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["Svdp"]:
        """Yield one rank more."""
        if self.rank < min(rows, columns):
            yield self.model_copy(update={"rank": self.rank + 1})

    def in_words(self) -> str:
        """`SVD, rank 4` and how its spectrum is kept, if it is."""
        kept = "" if self.spectrum == "free" else f", {self.spectrum} spectrum"
        return f"SVD, rank {self.rank}{kept}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the two frames at their true sizes: U along the left edge, V^T along the top."""
        yield whole(rows=rows, columns=columns, tone="low rank", opacity=0.12)
        yield Patch(0, rows, 0, self.rank, "low rank", title="orthonormal columns")
        yield Patch(0, self.rank, 0, columns, "low rank", title="orthonormal rows")
