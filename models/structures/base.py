"""What every matrix structure says of itself, by arithmetic alone: no tensor is allocated for it.

A matrix is `rows x columns`; a layer's input is its columns, its output its rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from itertools import pairwise
from math import gcd, inf
from numbers import Integral, Real
from typing import Any, Literal

from models.frozen import Spec

MOST_SIDE = 2**63 - 1  # of a tensor; and the logarithms of larger ones would not be floats
LISTED = 4096  # divisors up to here are named in messages
NAMED = 64  # choices of a message: of the layers of a network there may be thousands
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


def _of_a_matrix(check_fits: Callable[..., None]) -> Callable[..., None]:
    @wraps(check_fits)
    def checked(self: "MatrixSpec", *, rows: int, columns: int) -> None:
        check_matrix(rows=rows, columns=columns)
        check_fits(self, rows=rows, columns=columns)

    return checked


def _where_it_fits(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def checked(self: "MatrixSpec", *, rows: int, columns: int) -> Any:
        self.check_fits(rows=rows, columns=columns)
        return method(self, rows=rows, columns=columns)

    return checked


GUARDS: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "check_fits": _of_a_matrix,
    **dict.fromkeys(("parameter_count", "mac_count", "larger", "patches"), _where_it_fits),
}


class MatrixSpec(Spec, ABC):
    """What can stand in the place of a matrix, if its sizes fit the rows and columns.

    Whatever a subclass says of a matrix, it says only where it fits: its own methods of the names
    in `GUARDS` begin by checking that, so that no structure can forget to.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in GUARDS.keys() & vars(cls).keys():
            setattr(cls, name, GUARDS[name](vars(cls)[name]))

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
    def in_words(self) -> str:
        """A few words for tables and labels: `low rank, 4`."""


class StructureSpec(MatrixSpec, ABC):
    """Everything that fixes the shape of a structured matrix, but for its rows and columns.

    A size that does not divide is padded up, and what padding stores or multiplies is counted.
    """

    @abstractmethod
    def larger(self, *, rows: int, columns: int) -> "Iterator[StructureSpec]":
        """Yield this structure's next sizes up, in no order of cost; none if it is whole.

        Each has one piece more. Where padding makes the next one no sure step up, all are yielded,
        the largest first: of blocks and groups every smaller number.
        """

    @abstractmethod
    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield what its picture consists of, from the back to the front."""


def check_range(name: str, value: Any, *, low: int, high: int | None = None, where: str) -> None:
    """Raise ValueError with the argument, its value and the range that `where` admits."""
    is_whole = type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))
    if is_whole and low <= value and (high is None or value <= high):
        return
    admitted = f"{low} and more" if high is None else f"{low} to {high}" if low <= high else "none"
    kind = "" if is_whole else "whole numbers, "
    raise ValueError(f"{name} is {value!r}, but {where} admits {kind}{admitted}")


def check_number(name: str, value: float, *, where: str) -> None:
    """Raise ValueError where this is no number, or no finite one, from 0 up."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < inf:
        raise ValueError(f"{name} is {value!r}, but {where} admits 0 and more")


def check_matrix(*, rows: int, columns: int) -> None:
    """Raise ValueError where no matrix has as few rows or columns, or as many."""
    for name, side in (("rows", rows), ("columns", columns)):
        check_range(name, side, low=1, where="a matrix")
        check_range(name, side, low=1, high=MOST_SIDE, where="a tensor")


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


def check_rising(name: str, values: Sequence[Any]) -> None:
    """Raise ValueError with the first value that is not larger than the one before it."""
    for before, value in pairwise(values):
        if not before < value:
            raise ValueError(
                f"{name} holds {value} after {before}, but must be sorted and all different"
            )


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise ValueError with the argument, its value, the choice nearest to it and all there are."""
    if not isinstance(value, str) or value not in choices:
        likely = f" ({near!r}, perhaps)" if (near := nearest(str(value), choices)) else ""
        # In quotes: there are names with a comma.
        listed = ", ".join(map(repr, list(choices)[:NAMED]))
        listed += ", ..." if len(choices) > NAMED else ""
        raise ValueError(f"{name} is {value!r}, but the choices are{likely} {listed}")


def nearest(value: str, choices: Collection[str]) -> str | None:
    """The choice that this may mean, whatever its case: one that begins so, or nearly is it."""
    lower = {choice.lower(): choice for choice in reversed(list(choices))}
    begun = [choice for choice in choices if value and choice.lower().startswith(value.lower())]
    near = begun or [lower[one] for one in get_close_matches(value.lower(), lower, n=1)]
    return near[0] if near else None


def matrix_in_words(*, rows: int, columns: int) -> str:
    """`a 4 x 6 matrix`, for messages."""
    return f"a {rows} x {columns} matrix"


def counted(number: int, noun: str) -> str:
    """`1 tile`, `2 tiles`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def whole(*, rows: int, columns: int, tone: Tone, opacity: float) -> Patch:
    """The patch that covers the matrix."""
    return Patch(0, rows, 0, columns, tone, opacity)
