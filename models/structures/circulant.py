"""Circulant: every diagonal, wrapped around, holds one number."""

from collections.abc import Iterator
from typing import Literal, final

from models.structures.base import Patch, StructureSpec, whole
from models.structures.fourier import spectrum_macs, transform_macs, wrapped_length

DRAWN = 12  # cells along the longer side, which step down the picture's diagonals


@final
class Circulant(StructureSpec):
    """W[i, j] = c[(i - j) mod n], n the longer side: a square circulant matrix, cropped."""

    kind: Literal["circulant"] = "circulant"

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit every matrix."""

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """The longer side: each number lies inside of the cropped matrix."""
        return max(rows, columns)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """Two real transforms of length L and a product of spectra: 3 L log2 L + 4 (L // 2 + 1).

        L is the longer side if its primes are at most 5, else the next such length from twice that.
        The transform of c is made once for all inputs, and not counted.
        """
        length = wrapped_length(max(rows, columns), sign=1)
        return 2 * transform_macs(length) + spectrum_macs(length)

    def larger(self, *, rows: int, columns: int) -> Iterator["Circulant"]:
        """There is only one."""
        yield from ()

    def in_words(self) -> str:
        """`circulant`."""
        return "circulant"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the matrix and one of its diagonals, in steps."""
        yield whole(rows=rows, columns=columns, tone="shift-invariant", opacity=0.3)
        yield from diagonal(rows=rows, columns=columns)


def diagonal(*, rows: int, columns: int) -> Iterator[Patch]:
    """Yield the wrapped main diagonal in steps, for pictures."""
    step = -(-max(rows, columns) // DRAWN)
    for start in range(0, max(rows, columns), step):
        top, left = start % rows, start % columns
        tall, wide = min(step, rows - top), min(step, columns - left)
        yield Patch(top, tall, left, wide, "shift-invariant", 0.6)
