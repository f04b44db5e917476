"""Block sparse: some of the square tiles of a matrix, the others zero."""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Annotated, Literal, final

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from models.structures.base import Patch, StructureSpec, check_range, counted, matrix_in_words

Position = tuple[NonNegativeInt, NonNegativeInt]


@final
class BlockSparse(StructureSpec):
    """Dense tiles of side `tile` at the `positions` (row, column) of a grid; the rest is zero.

    Positions are kept in order; tiles at the lower and right borders are padded up.
    """

    kind: Literal["block_sparse"] = "block_sparse"
    tile: PositiveInt
    positions: Annotated[tuple[Position, ...], Field(min_length=1)]

    @field_validator("positions")
    @classmethod
    def _in_order(cls, positions: tuple[Position, ...]) -> tuple[Position, ...]:
        positions = tuple(sorted(positions))
        for before, position in pairwise(positions):
            if before == position:
                raise ValueError(f"positions names the tile {position} twice")
        return positions

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit tiles no larger than the larger side, at places of the grid."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_range("tile", self.tile, low=1, high=max(rows, columns), where=where)
        height, width = self.grid(rows=rows, columns=columns)
        where = f"a {height} x {width} grid of tiles"
        down, across = zip(*self.positions, strict=True)
        check_range("a row of positions", max(down), low=0, high=height - 1, where=where)
        check_range("a column of positions", max(across), low=0, high=width - 1, where=where)

    def grid(self, *, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of the grid of tiles."""
        return -(-rows // self.tile), -(-columns // self.tile)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """All tiles, with their padding."""
        return len(self.positions) * self.tile**2

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["BlockSparse"]:
        """Yield one tile more, at the first place that has none: all cost the same."""
        height, width = self.grid(rows=rows, columns=columns)
        taken = set(self.positions)
        places = ((row, column) for row in range(height) for column in range(width))
        for place in islice((place for place in places if place not in taken), 1):
            yield BlockSparse(tile=self.tile, positions=(*self.positions, place))

    def in_words(self) -> str:
        """`12 tiles of 32 x 32`."""
        return f"{counted(len(self.positions), 'tile')} of {self.tile} x {self.tile}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the tiles, cropped."""
        for row, column in self.positions:
            top, left = row * self.tile, column * self.tile
            tall, wide = min(self.tile, rows - top), min(self.tile, columns - left)
            yield Patch(top, tall, left, wide, "tiles")
