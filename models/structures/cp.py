"""CP or rank-R: each unit's weights, folded into a tensor, are a sum of R outer products."""

from collections.abc import Iterator
from math import prod
from typing import Annotated, Literal, final

from pydantic import Field, PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole
from models.structures.factorisation import check_modes, modes_in_words


@final
class Cp(StructureSpec):
    """Row i is sum_t a_1[i, t] o .. o a_d[i, t] over `column_modes` (arXiv 2104.05048).

    It saves parameters, never MACs: they are those of dense and what it takes to build the matrix,
    once for a whole batch, which is cheaper than to contract each input with every factor.
    """

    kind: Literal["cp"] = "cp"
    terms: PositiveInt
    column_modes: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=8)]

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit modes that reach the columns, and as many terms as any tensor needs."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_modes("column_modes", self.column_modes, side=columns, where=where)
        where = f"a tensor of {modes_in_words(self.column_modes)}"
        check_range("terms", self.terms, low=1, high=self._most, where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """One vector for each mode and term of a unit."""
        return rows * self.terms * sum(self.column_modes)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """Those of dense, and for a batch of one the matrix: always more than dense."""
        built = sum(prod(self.column_modes[:index]) for index in range(2, self._depth + 1))
        return rows * columns + rows * self.terms * built

    def larger(self, *, rows: int, columns: int) -> Iterator["Cp"]:
        """Yield one term more."""
        if self.terms < self._most:
            yield self.model_copy(update={"terms": self.terms + 1})

    def in_words(self) -> str:
        """`CP rank 4 of 48x64`."""
        return f"CP rank {self.terms} of {modes_in_words(self.column_modes)}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield each mode's vectors at their true length, side by side."""
        yield whole(rows=rows, columns=columns, tone="tensor network", opacity=0.12)
        start = 0
        for mode in self.column_modes:
            if start < columns:
                width = min(mode, columns - start)
                title = f"{self.terms} vectors of {mode} for each row"
                yield Patch(0, rows, start, width, "tensor network", 0.5, title)
            start += mode

    @property
    def _depth(self) -> int:
        return len(self.column_modes)

    @property
    def _most(self) -> int:
        return prod(self.column_modes) // max(self.column_modes)
