"""Butterfly: a product of sparse factors that mix pairs of numbers (Dao et al., arXiv 1903.05895).

With n the next power of two of the smaller side, a block is log2 n factors of n x n. The factor of
stride 2^i replaces every pair of entries 2^i apart by two weighted sums of it. A matrix with one
side longer than n is copies of the n x n matrix above or beside one another, the last one cropped.
"""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, counted, matrix_in_words

DRAWN = 4  # the longest strides, whose blocks a picture shows


@final
class Butterfly(StructureSpec):
    """`blocks` butterflies, multiplied; the first's strides run as told, each next one's backwards.

    Complex numbers act on the real input, and the real part is put out. With a bit reversal the
    input is first permuted: entry i takes the number at i with its bits in reverse. The Fourier
    transform is one complex block of increasing strides after a bit reversal, its real part n x n,
    real above imaginary part 2n x n; any circulant matrix is two complex blocks that start with
    decreasing strides; a Hadamard matrix is one real block.
    """

    kind: Literal["butterfly"] = "butterfly"
    blocks: PositiveInt = 1
    numbers: Literal["real", "complex"] = "real"
    strides: Literal["increasing", "decreasing"] = "increasing"
    bit_reversal: bool = False

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit as many blocks as a padded side is long: fewer can stand for every matrix."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_range("blocks", self.blocks, low=1, high=padded_side(rows, columns), where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """2 n for each factor of each copy, twice that for complex numbers."""
        parts = 2 if self.numbers == "complex" else 1
        return parts * 2 * self._factor_count(rows, columns) * padded_length(rows, columns)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """Factor by factor: one for each number, but for complex ones four real products.

        The first factor, which sees real numbers, and the last, which puts them out, take two.
        """
        factors = self._factor_count(rows, columns)
        if self.numbers == "complex":
            factors = 4 * (factors - 1) if factors > 1 else 1
        return 2 * factors * padded_length(rows, columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["Butterfly"]:
        """Yield one block more."""
        if self.blocks < padded_side(rows, columns):
            yield self.model_copy(update={"blocks": self.blocks + 1})

    def in_words(self) -> str:
        """`butterfly, 2 complex blocks, bit reversal`."""
        numbers = "complex block" if self.numbers == "complex" else "block"
        reversal = ", bit reversal" if self.bit_reversal else ""
        return f"butterfly, {counted(self.blocks, numbers)}{reversal}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield, for the longest strides, the blocks inside which a factor mixes."""
        side = padded_side(rows, columns)
        for top in range(0, rows, side):
            for left in range(0, columns, side):
                size = side
                for _ in range(min(DRAWN, levels(side))):
                    for start in range(0, side, size):
                        row, column = top + start, left + start
                        if row < rows and column < columns:
                            tall, wide = min(size, rows - row), min(size, columns - column)
                            yield Patch(row, tall, column, wide, "product of sparse factors", 0.25)
                    size //= 2

    def _factor_count(self, rows: int, columns: int) -> int:
        return self.blocks * levels(min(rows, columns))


def levels(numbers: int) -> int:
    """log2 n of the numbers padded up to n, a power of two: how many factors mix them."""
    return max(1, (numbers - 1).bit_length())


def padded_side(rows: int, columns: int) -> int:
    """n: the smaller side, padded up to a power of two."""
    side: int = 1 << levels(min(rows, columns))
    return side


def padded_length(rows: int, columns: int) -> int:
    """The larger side, padded up to a multiple of n: all copies together."""
    side = padded_side(rows, columns)
    return -(-max(rows, columns) // side) * side
