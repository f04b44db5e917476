"""Toeplitz-like: the difference between a matrix and itself, shifted, has low rank."""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole
from models.structures.circulant import diagonal
from models.structures.fourier import spectrum_macs, transform_macs, wrapped_length


@final
class ToeplitzLike(StructureSpec):
    """A W - W B of rank `rank`, A and B cyclic shifts, one with a change of sign at the wrap.

    The sign changes along the longer side, or along the columns of a square matrix: A = Z_1,
    B = Z_-1. The longer side is padded up to a multiple of the shorter, so that no eigenvalue of A
    comes nearer to one of B than pi over the longer side (Thomas et al., NeurIPS 2018).
    """

    kind: Literal["toeplitz_like"] = "toeplitz_like"
    rank: PositiveInt

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit displacement ranks up to the smaller side."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_range("rank", self.rank, low=1, high=min(rows, columns), where=where)

    @staticmethod
    def padded(*, rows: int, columns: int) -> tuple[int, int]:
        """Both sides, the longer a multiple of the shorter."""
        shorter = min(rows, columns)
        return -(-rows // shorter) * shorter, -(-columns // shorter) * shorter

    @staticmethod
    def signs(*, rows: int, columns: int) -> tuple[int, int]:
        """What a row's and a column's index bring along when they wrap around."""
        return (-1, 1) if rows > columns else (1, -1)

    def lengths(self, *, rows: int, columns: int) -> tuple[int, int]:
        """Of the transforms along the rows and along the columns."""
        signs = self.signs(rows=rows, columns=columns)
        sizes = self.padded(rows=rows, columns=columns)
        found = [wrapped_length(size, sign=sign) for size, sign in zip(sizes, signs, strict=True)]
        return found[0], found[1]

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """Two generators: 2 n r for a square matrix."""
        return self.rank * sum(self.padded(rows=rows, columns=columns))

    def mac_count(self, *, rows: int, columns: int) -> int:
        """Along each side r + 1 real transforms and r products of spectra: O(r n log n).

        With T(L) = 3/2 L log2 L and lengths P of the rows and Q of the columns:
        (r + 1) (T(P) + T(Q)) + 4 r (P // 2 + 1 + Q // 2 + 1). A length is twice its padded side, or
        the side itself where it wraps without a sign and is smooth, then the next smooth length.
        """
        return sum(
            (self.rank + 1) * transform_macs(length) + self.rank * spectrum_macs(length)
            for length in self.lengths(rows=rows, columns=columns)
        )

    def larger(self, *, rows: int, columns: int) -> Iterator["ToeplitzLike"]:
        """Yield one rank more."""
        if self.rank < min(rows, columns):
            yield ToeplitzLike(rank=self.rank + 1)

    def in_words(self) -> str:
        """`Toeplitz-like, 4`."""
        return f"Toeplitz-like, {self.rank}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the generators along the edges, and a diagonal along which they are shifted."""
        yield whole(rows=rows, columns=columns, tone="shift-invariant", opacity=0.2)
        yield from diagonal(rows=rows, columns=columns)
        yield Patch(0, rows, 0, self.rank, "shift-invariant", 0.5, "a generator of the rows")
        yield Patch(0, self.rank, 0, columns, "shift-invariant", 0.5, "a generator of the columns")
