"""Block low rank: a grid of equal blocks, each with a rank of its own."""

from collections.abc import Iterator
from typing import Annotated, Literal, final

from pydantic import Field, NonNegativeInt, model_validator

from models.structures.base import (
    Patch,
    StructureSpec,
    check_range,
    check_sides,
    counted,
)
from models.structures.grid import cells

RankRow = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


@final
class BlockLowRank(StructureSpec):
    """Equal blocks, one for each of `ranks`, a row of blocks a tuple; rank 0 leaves one out.

    Blocks are padded up where they do not divide the matrix.
    """

    kind: Literal["block_low_rank"] = "block_low_rank"
    ranks: Annotated[tuple[RankRow, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_a_grid(self) -> "BlockLowRank":
        if len({len(row) for row in self.ranks}) > 1:
            raise ValueError("ranks must be a rectangle: all its rows have one length")
        if not any(map(any, self.ranks)):
            raise ValueError("ranks must name at least one block with a rank above 0")
        return self

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit as many blocks as a side has entries, and ranks up to a block's smaller side."""
        of_rows, of_columns = (
            ("the number of rows of ranks", len(self.ranks)),
            ("the number of columns of ranks", len(self.ranks[0])),
        )
        check_sides(of_rows, of_columns, rows=rows, columns=columns)
        height, width = self.block_sides(rows=rows, columns=columns)
        where = f"a {height} x {width} block"
        for rank in sorted({rank for row in self.ranks for rank in row}):
            check_range("a rank of ranks", rank, low=0, high=min(height, width), where=where)

    def block_sides(self, *, rows: int, columns: int) -> tuple[int, int]:
        """Height and width of a block, padding included."""
        return -(-rows // len(self.ranks)), -(-columns // len(self.ranks[0]))

    @property
    def total_rank(self) -> int:
        """The sum of all ranks."""
        return sum(map(sum, self.ranks))

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """Two factors for each block."""
        return self.total_rank * sum(self.block_sides(rows=rows, columns=columns))

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["BlockLowRank"]:
        """Yield one rank more in each block."""
        most = min(self.block_sides(rows=rows, columns=columns))
        for row, ranks in enumerate(self.ranks):
            for column, rank in enumerate(ranks):
                if rank < most:
                    grown = (*ranks[:column], rank + 1, *ranks[column + 1 :])
                    yield BlockLowRank(ranks=(*self.ranks[:row], grown, *self.ranks[row + 1 :]))

    def in_words(self) -> str:
        """`4 x 4 blocks of low rank, 96 ranks`."""
        grid = f"{len(self.ranks)} x {len(self.ranks[0])} blocks of low rank"
        return f"{grid}, {counted(self.total_rank, 'rank')}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the blocks that have a rank, the darker the higher it is."""
        height, width = self.block_sides(rows=rows, columns=columns)
        for row, column, (top, tall, left, wide) in cells(rows, columns, height, width):
            if rank := self.ranks[row][column]:
                opacity = 0.15 + 0.7 * rank / min(height, width)
                title = f"rank {rank}: {tall} rows from {top}, {wide} columns from {left}"
                yield Patch(top, tall, left, wide, "low rank", opacity, title)
