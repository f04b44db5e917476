"""What every matrix structure says of itself, by arithmetic alone: no tensor is allocated for it.

A matrix is `rows x columns`; a layer's input is its columns, its output its rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Literal

from models.frozen import Spec

LISTED = 4096  # divisors up to here are named in messages
# What a picture's legend distinguishes.
Tone = Literal[
    "dense",
    "low rank",
    "blocks",
    "rectangles",
    "tiles",
    "sparse entries",
    "product of sparse factors",
    "tensor network",
    "shift-invariant",
]


@dataclass(frozen=True, slots=True)
class Patch:
    """A rectangle in the picture of a matrix, which may wrap around the border (cyclic)."""

    row_start: int
    row_count: int
    column_start: int
    column_count: int
    tone: Tone
    opacity: float = 0.75
    title: str = ""  # what a reader who points at it is told


class StructureSpec(Spec, ABC):
    """Everything that fixes the shape of a structured matrix, but for its rows and columns.

    A size that does not divide is padded up, and what padding stores or multiplies is counted.
    """

    @abstractmethod
    def check_fits(self, *, rows: int, columns: int) -> None:
        """Raise ValueError naming the argument, its value and the admissible range."""

    @abstractmethod
    def parameter_count(self, *, rows: int, columns: int) -> int:
        """Trainable numbers stored."""

    @abstractmethod
    def mac_count(self, *, rows: int, columns: int) -> int:
        """Multiply-accumulates for one input vector."""

    @abstractmethod
    def larger(self, *, rows: int, columns: int) -> "Iterator[StructureSpec]":
        """Yield this structure's next sizes up, each with one piece more; none if it is whole."""

    @abstractmethod
    def in_words(self) -> str:
        """A few words for tables and labels: `low rank, 4`."""

    @abstractmethod
    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield what its picture consists of, from the back to the front."""


def check_range(name: str, value: float, *, low: int, high: int | None = None, where: str) -> None:
    """Raise ValueError with the argument, its value and the range that `where` admits."""
    if high is None:
        if not value >= low:
            raise ValueError(f"{name} is {value}, but {where} admits {low} and more")
    elif not low <= value <= high:
        raise ValueError(f"{name} is {value}, but {where} admits {low} to {high}")


def check_matrix(*, rows: int, columns: int) -> None:
    """Raise ValueError where no matrix has as few rows or columns."""
    check_range("rows", rows, low=1, where="a matrix")
    check_range("columns", columns, low=1, where="a matrix")


def check_sides(
    of_rows: tuple[str, int], of_columns: tuple[str, int], *, rows: int, columns: int
) -> None:
    """Admit two arguments, each with its name, up to the rows and up to the columns."""
    where = matrix_in_words(rows=rows, columns=columns)
    check_range(*of_rows, low=1, high=rows, where=where)
    check_range(*of_columns, low=1, high=columns, where=where)


def check_divides(name: str, value: int, **numbers: int) -> None:
    """Raise ValueError with the argument, its value and what divides all of these numbers."""
    common = gcd(*numbers.values())
    if value < 1 or common % value:
        whole = " and ".join(f"{whom} {number}" for whom, number in numbers.items())
        listed = [str(one) for one in range(1, min(common, LISTED) + 1) if common % one == 0]
        more = ", ..." if common > LISTED else ""
        verb = "admit" if len(numbers) > 1 else "admits"
        raise ValueError(f"{name} is {value}, but {whole} {verb} {', '.join(listed)}{more}")


def matrix_in_words(*, rows: int, columns: int) -> str:
    """`a 4 x 6 matrix`, for messages."""
    return f"a {rows} x {columns} matrix"


def counted(number: int, noun: str) -> str:
    """`1 tile`, `2 tiles`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def whole(*, rows: int, columns: int, tone: Tone, opacity: float) -> Patch:
    """The patch that covers the matrix."""
    return Patch(0, rows, 0, columns, tone, opacity)
