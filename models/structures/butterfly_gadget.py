"""Butterfly gadget: a small dense core between two truncated butterflies (arXiv 2007.08864).

A truncated butterfly J takes n numbers to k. It has log2 n layers of 2x2 mixes at stride 2^i, of
which only the outputs are computed that some of the k depend on.
"""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import NonNegativeInt, PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, check_sides, whole
from models.structures.butterfly import levels


@final
class ButterflyGadget(StructureSpec):
    """W = J2^T W' J1 with the core W' of `core_rows x core_columns`, all three trainable.

    The rank is at most that of the core. J1 and J2 start as orthonormal rows of a Hadamard matrix
    with random signs; `seed` fixes which rows (Ailon, Leibovitch & Nair, UAI 2021).
    """

    kind: Literal["butterfly_gadget"] = "butterfly_gadget"
    core_rows: PositiveInt
    core_columns: PositiveInt
    seed: NonNegativeInt = 0

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit cores no larger than the matrix, and what a generator takes as a seed."""
        of_rows, of_columns = ("core_rows", self.core_rows), ("core_columns", self.core_columns)
        check_sides(of_rows, of_columns, rows=rows, columns=columns)
        check_range("seed", self.seed, low=0, high=2**63 - 1, where="a generator")

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """The core and two numbers for each mix that the truncation needs."""
        return (
            mix_count(rows, self.core_rows)
            + self.core_rows * self.core_columns
            + mix_count(columns, self.core_columns)
        )

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["ButterflyGadget"]:
        """Yield a core of one row more, and of one column more."""
        if self.core_rows < rows:
            yield self.model_copy(update={"core_rows": self.core_rows + 1})
        if self.core_columns < columns:
            yield self.model_copy(update={"core_columns": self.core_columns + 1})

    def in_words(self) -> str:
        """`butterfly gadget, core 8 x 16`."""
        return f"butterfly gadget, core {self.core_rows} x {self.core_columns}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the core in the corner of what it is spread over."""
        yield whole(rows=rows, columns=columns, tone="product of sparse factors", opacity=0.3)
        yield Patch(0, self.core_rows, 0, self.core_columns, "dense")


def mix_count(numbers: int, kept: int) -> int:
    """Two for each output computed: 2^(i+1) k going back from the kept, until all 2 n are."""
    depth = levels(numbers)
    return sum(min(kept << (index + 1), 2 << depth) for index in range(depth))
