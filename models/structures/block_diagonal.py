"""Block diagonal: equal dense blocks on the diagonal, padded up where they do not divide."""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words


@final
class BlockDiagonal(StructureSpec):
    """`blocks` equal dense blocks on the diagonal; sizes that do not divide are padded up."""

    kind: Literal["block_diagonal"] = "block_diagonal"
    blocks: PositiveInt

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit as many blocks as the smaller side has entries."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_range("blocks", self.blocks, low=1, high=min(rows, columns), where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """All blocks, with their padding."""
        return self.blocks * -(-rows // self.blocks) * -(-columns // self.blocks)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["BlockDiagonal"]:
        """Yield every smaller number of blocks: padding makes the next one no sure step up."""
        for fewer in range(1, self.blocks):
            yield BlockDiagonal(blocks=fewer)

    def in_words(self) -> str:
        """`8 diagonal blocks`."""
        return f"{self.blocks} diagonal blocks"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the blocks, cropped."""
        height, width = -(-rows // self.blocks), -(-columns // self.blocks)
        for block in range(self.blocks):
            top, left = block * height, block * width
            if top < rows and left < columns:
                tall, wide = min(height, rows - top), min(width, columns - left)
                yield Patch(top, tall, left, wide, "blocks")
