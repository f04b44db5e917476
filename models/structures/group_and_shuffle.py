"""Group and shuffle: block-diagonal factors with fixed shuffles between (NeurIPS 2024, 2406.10019).

With g groups, every factor has g equal blocks, and P sends entry i of n to (i mod g) n/g + i // g:
entries that were neighbours in one group come into different ones. Sizes are padded up.
"""

import itertools
from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import (
    Patch,
    StructureSpec,
    check_range,
    counted,
    matrix_in_words,
    whole,
)

# Blocks of two reach every position of 2^16 entries with so many.
MOST_FACTORS = 16


@final
class GroupAndShuffle(StructureSpec):
    """W = P^T B_m P ... P B_1, each B of `groups` blocks: free, or rotations.

    Inside, the free structure is as wide as the smaller side. The orthogonal one is square with the
    larger side, and cropped: its blocks are Cayley maps (I + A)^-1 (I - A) of skew matrices A, of
    which the upper halves are stored. W can be dense once the block side b reaches b^m >= n.
    """

    kind: Literal["group_and_shuffle"] = "group_and_shuffle"
    groups: PositiveInt
    factors: PositiveInt = 2
    orthogonal: bool = False

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit as many groups as the smaller side has entries; a rotation needs two in each."""
        most, where = min(rows, columns), matrix_in_words(rows=rows, columns=columns)
        if self.orthogonal:
            most, where = min(most, max(rows, columns) - 1), f"{where} with orthogonal True"
        check_range("groups", self.groups, low=1, high=most, where=where)
        check_range("factors", self.factors, low=2, high=MOST_FACTORS, where="group and shuffle")

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """All blocks, with their padding; of a rotation b (b - 1) / 2."""
        if self.orthogonal:
            side = self.inner_side(rows=rows, columns=columns)
            return self.groups * self.factors * side * (side - 1) // 2
        return self.mac_count(rows=rows, columns=columns)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """All entries of all blocks; building rotations is no cost of an input."""
        sides = self.sides(rows=rows, columns=columns)
        return self.groups * sum(width * height for width, height in itertools.pairwise(sides))

    def larger(self, *, rows: int, columns: int) -> Iterator["GroupAndShuffle"]:
        """Yield every smaller number of groups, and one factor more."""
        for fewer in range(1, self.groups):
            yield self.model_copy(update={"groups": fewer})
        if self.factors < MOST_FACTORS:
            yield self.model_copy(update={"factors": self.factors + 1})

    def in_words(self) -> str:
        """`group and shuffle, 8 groups, 2 orthogonal factors`."""
        factors = f"{self.factors} {'orthogonal ' if self.orthogonal else ''}factors"
        return f"group and shuffle, {counted(self.groups, 'group')}, {factors}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the first factor's blocks along the diagonal, over the whole they are spread to."""
        yield whole(rows=rows, columns=columns, tone="product of sparse factors", opacity=0.2)
        height, width = -(-rows // self.groups), -(-columns // self.groups)
        for group in range(self.groups):
            top, left = group * height, group * width
            if top < rows and left < columns:
                tall, wide = min(height, rows - top), min(width, columns - left)
                yield Patch(top, tall, left, wide, "product of sparse factors")

    def inner_side(self, *, rows: int, columns: int) -> int:
        """b: the side of a block in all factors but the first and the last."""
        side = max(rows, columns) if self.orthogonal else min(rows, columns)
        return -(-side // self.groups)

    def sides(self, *, rows: int, columns: int) -> list[int]:
        """The width of a group before, between and after the factors."""
        inner = [self.inner_side(rows=rows, columns=columns)] * (self.factors - 1)
        if self.orthogonal:
            return [*inner, *inner[:1], *inner[:1]]
        return [-(-columns // self.groups), *inner, -(-rows // self.groups)]
