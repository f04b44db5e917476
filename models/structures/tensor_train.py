"""Tensor train: a matrix whose rows and columns are split into modes, one core for each pair."""

from collections.abc import Iterator
from math import prod
from typing import Annotated, Literal, Self, final

from pydantic import Field, PositiveInt, model_validator

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole
from models.structures.factorisation import check_modes, modes_in_words

Modes = Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=16)]


@final
class TensorTrain(StructureSpec):
    """W[(i1, .., id), (j1, .., jd)] = G1[i1, j1] .. Gd[id, jd] with `ranks` between the cores.

    Modes whose product is beyond the side are padded up. ValueError where the lengths disagree.
    """

    kind: Literal["tensor_train"] = "tensor_train"
    row_modes: Modes
    column_modes: Modes
    ranks: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if not len(self.row_modes) == len(self.column_modes) == len(self.ranks) + 1:
            raise ValueError(
                f"{len(self.row_modes)} row_modes need as many column_modes and one rank less, "
                f"but there are {len(self.column_modes)} and {len(self.ranks)}"
            )
        return self

    @property
    def cores(self) -> list[tuple[int, int, int, int]]:
        """Of each core the rank before, the row mode, the column mode and the rank after."""
        before, after = (1, *self.ranks), (*self.ranks, 1)
        return list(zip(before, self.row_modes, self.column_modes, after, strict=True))

    @property
    def forwards(self) -> bool:
        """Whether contracting the first core first takes no more than the last first."""
        return self._macs(self.cores) <= self._macs(self._mirrored)

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit modes that reach the sides and no more, and ranks that the neighbours can use."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_modes("row_modes", self.row_modes, side=rows, where=where)
        check_modes("column_modes", self.column_modes, side=columns, where=where)
        for index, rank in enumerate(self.ranks):
            where = f"the place between cores {index + 1} and {index + 2}"
            most = self._most(index)
            check_range("a rank of ranks", rank, low=1, high=most, where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """All cores."""
        return sum(prod(core) for core in self.cores)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """Multiply-accumulates of one sweep over the cores, from the end where that takes less."""
        return min(self._macs(self.cores), self._macs(self._mirrored))

    def larger(self, *, rows: int, columns: int) -> Iterator["TensorTrain"]:
        """Yield one rank more between two cores."""
        for index, rank in enumerate(self.ranks):
            if rank < self._most(index):
                ranks = (*self.ranks[:index], rank + 1, *self.ranks[index + 1 :])
                yield self.model_copy(update={"ranks": ranks})

    def in_words(self) -> str:
        """`tensor train 8x12x8 to 16x12x16, ranks 4, 4`: from column modes to row modes."""
        modes = f"{modes_in_words(self.column_modes)} to {modes_in_words(self.row_modes)}"
        return f"tensor train {modes}, ranks {', '.join(map(str, self.ranks))}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield blocks within the first block: each core fills the blocks of those before it."""
        yield whole(rows=rows, columns=columns, tone="tensor network", opacity=0.12)
        for index, (before, tall, wide, after) in enumerate(self.cores[1:], start=1):
            height, width = prod(self.row_modes[index:]), prod(self.column_modes[index:])
            title = f"core {index + 1}: {before} x {tall} x {wide} x {after}"
            height, width = min(rows, height), min(columns, width)
            yield Patch(0, height, 0, width, "tensor network", 0.4, title)

    @property
    def _mirrored(self) -> list[tuple[int, int, int, int]]:
        return [(after, row, column, before) for before, row, column, after in self.cores[::-1]]

    def _most(self, index: int) -> int:
        left, right = self.cores[index], self.cores[index + 1]
        return min(prod(left[:3]), prod(right[1:]))

    @staticmethod
    def _macs(cores: list[tuple[int, int, int, int]]) -> int:
        """Of a sweep: what is done and what is still to come take part in each contraction."""
        waiting, done, total = prod(core[2] for core in cores), 1, 0
        for core in cores:
            waiting //= core[2]
            total += done * waiting * prod(core)
            done *= core[1]
        return total
