"""BLAST: a grid of low-rank blocks that share their factors (Lee et al., arXiv 2410.21262)."""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole


@final
class Blast(StructureSpec):
    """W_ij = U_i diag(s_ij) V_j^T on a grid of `blocks` a side (Lee et al., NeurIPS 2024).

    U_i and V_j, of `rank` columns, are shared along a row and a column of blocks; sizes that do not
    divide are padded up. At the largest rank every matrix is a BLAST.
    """

    kind: Literal["blast"] = "blast"
    blocks: PositiveInt
    rank: PositiveInt

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit blocks and ranks up to the smaller side."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_range("blocks", self.blocks, low=1, high=min(rows, columns), where=where)
        check_range("rank", self.rank, low=1, high=min(rows, columns), where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """The factors of all bands, with their padding, and a number per block and rank."""
        height, width = -(-rows // self.blocks), -(-columns // self.blocks)
        return self.rank * self.blocks * (height + width + self.blocks)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["Blast"]:
        """Yield one rank more."""
        if self.rank < min(rows, columns):
            yield Blast(blocks=self.blocks, rank=self.rank + 1)

    def in_words(self) -> str:
        """`BLAST, 4 x 4 blocks, rank 32`."""
        return f"BLAST, {self.blocks} x {self.blocks} blocks, rank {self.rank}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the grid, as every second band, and both factors as for low rank."""
        height, width = -(-rows // self.blocks), -(-columns // self.blocks)
        yield whole(rows=rows, columns=columns, tone="low rank", opacity=0.12)
        for top in range(height, rows, 2 * height):
            yield Patch(top, min(height, rows - top), 0, columns, "blocks", 0.15)
        for left in range(width, columns, 2 * width):
            yield Patch(0, rows, left, min(width, columns - left), "blocks", 0.15)
        yield Patch(0, rows, 0, self.rank, "low rank")
        yield Patch(0, self.rank, 0, columns, "low rank")
