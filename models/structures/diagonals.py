"""Diagonals: a band of chosen offsets and a rest of single free entries, all others zero."""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Literal, final

from pydantic import NonNegativeInt, model_validator

from models.structures.base import (
    Patch,
    StructureSpec,
    check_range,
    check_rising,
    counted,
    matrix_in_words,
)

STEPS = 48  # rectangles that a diagonal is drawn with, at most
DRAWN = 2048  # free entries that are drawn, at most

Position = tuple[NonNegativeInt, NonNegativeInt]


@final
class Diagonals(StructureSpec):
    """The diagonals W[i, i + offset] for every offset, and single entries W[row, column].

    Tridiagonal is (-1, 0, 1). Both are sorted, and no entry lies on a chosen diagonal.
    """

    kind: Literal["diagonals"] = "diagonals"
    offsets: tuple[int, ...]
    entries: tuple[Position, ...] = ()

    @model_validator(mode="after")
    def _each_number_is_free(self) -> "Diagonals":
        check_rising("offsets", self.offsets)
        check_rising("entries", self.entries)
        if not self.offsets and not self.entries:
            raise ValueError("offsets and entries are both empty, but one number must be free")
        chosen = set(self.offsets)
        for row, column in self.entries:
            if column - row in chosen:
                raise ValueError(
                    f"entries holds {row, column}, but that is on the diagonal {column - row}"
                )
        return self

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit the diagonals that cross the matrix, and entries inside it."""
        where = matrix_in_words(rows=rows, columns=columns)
        for offset in self.offsets[:1] + self.offsets[-1:]:
            check_range("offsets", offset, low=1 - rows, high=columns - 1, where=where)
        if self.entries:
            down, across = zip(*self.entries, strict=True)
            check_range("a row of entries", max(down), low=0, high=rows - 1, where=where)
            check_range("a column of entries", max(across), low=0, high=columns - 1, where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """The diagonals' lengths and the entries."""
        lengths = (diagonal_length(offset, rows=rows, columns=columns) for offset in self.offsets)
        return sum(lengths) + len(self.entries)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["Diagonals"]:
        """Yield one free entry more, and one diagonal more beside each that is there."""
        chosen, taken = set(self.offsets), set(self.entries)
        free = (
            (row, row + offset)
            for offset in range(1 - rows, columns)
            if offset not in chosen
            for row in range(max(0, -offset), min(rows, columns - offset))
            if (row, row + offset) not in taken
        )
        for position in islice(free, 1):
            yield self.model_copy(update={"entries": tuple(sorted((*self.entries, position)))})
        beside = {offset + step for offset in chosen for step in (-1, 1)} - chosen
        for offset in sorted(beside):
            if -rows < offset < columns:
                yield Diagonals(
                    offsets=tuple(sorted((*self.offsets, offset))),
                    entries=tuple(at for at in self.entries if at[1] - at[0] != offset),
                )

    def in_words(self) -> str:
        """`3 diagonals, 10 free entries`."""
        parts = (counted(len(self.offsets), "diagonal"), _entries_in_words(len(self.entries)))
        return ", ".join(part for part in parts if not part.startswith("0"))

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield neighbouring diagonals together as a staircase, then the free entries."""
        for low, high in runs(self.offsets):
            first, end = max(0, -high), min(rows, columns - low)
            step = -(-(end - first) // STEPS)
            title = f"diagonals {low} to {high}" if low < high else f"diagonal {low}"
            for top in range(first, end, step):
                tall = min(step, rows - top)
                left, right = max(0, top + low), min(columns, top + tall + high)
                if left < right:
                    yield Patch(
                        top, tall, left, right - left, "sparse entries", opacity=0.55, title=title
                    )
        for row, column in self.entries[:: -(-len(self.entries) // DRAWN) or 1]:
            yield Patch(row, 1, column, 1, "sparse entries", title=f"entry {row}, {column}")


def diagonal_length(offset: int, *, rows: int, columns: int) -> int:
    """Numbers on the diagonal W[i, i + offset]."""
    return min(rows, columns - offset) - max(0, -offset)


def runs(offsets: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first and last offset of every group of neighbours."""
    start = None
    for here, following in pairwise((*offsets, None)):
        assert here is not None
        start = here if start is None else start
        if following is None or following > here + 1:
            yield start, here
            start = None


def _entries_in_words(number: int) -> str:
    return f"{number} free entr{'y' if number == 1 else 'ies'}"
