"""Block tensor-train: a grid of blocks of one rank, as two batched products; Monarch is rank 1."""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, check_sides
from models.structures.grid import cells


@final
class Btt(StructureSpec):
    """`output_blocks x input_blocks` equal blocks of one rank, padded up where they do not divide.

    Dao et al., ICML 2022, arXiv 2204.00595 (Monarch, rank 1); Qiu et al., ICML 2024, 2406.06248.
    """

    kind: Literal["btt"] = "btt"
    input_blocks: PositiveInt
    output_blocks: PositiveInt
    rank: PositiveInt = 1

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit as many blocks as a side has entries, and ranks up to a block's smaller side."""
        of_rows, of_columns = (
            ("output_blocks", self.output_blocks),
            ("input_blocks", self.input_blocks),
        )
        check_sides(of_rows, of_columns, rows=rows, columns=columns)
        height, width = self.block_sides(rows=rows, columns=columns)
        where = f"a {height} x {width} block"
        check_range("rank", self.rank, low=1, high=min(height, width), where=where)

    def block_sides(self, *, rows: int, columns: int) -> tuple[int, int]:
        """Height and width of a block, padding included."""
        return -(-rows // self.output_blocks), -(-columns // self.input_blocks)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """Two factors for each block."""
        height, width = self.block_sides(rows=rows, columns=columns)
        return self.rank * self.input_blocks * self.output_blocks * (height + width)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["Btt"]:
        """Yield one rank more."""
        if self.rank < min(self.block_sides(rows=rows, columns=columns)):
            yield self.model_copy(update={"rank": self.rank + 1})

    def in_words(self) -> str:
        """`Monarch, 4 x 4 blocks`, or `BTT, 4 x 4 blocks of rank 2`."""
        grid = f"{self.output_blocks} x {self.input_blocks} blocks"
        return f"Monarch, {grid}" if self.rank == 1 else f"BTT, {grid} of rank {self.rank}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield each block with its two factors at their true sizes, cropped."""
        height, width = self.block_sides(rows=rows, columns=columns)
        for _, _, (top, tall, left, wide) in cells(rows, columns, height, width):
            yield Patch(top, tall, left, wide, "blocks", 0.12)
            yield Patch(top, tall, left, min(self.rank, wide), "blocks")
            yield Patch(top, min(self.rank, tall), left, wide, "blocks")
