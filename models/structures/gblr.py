"""GBLR: a sum of low-rank rectangles, wherever they lie (Lee & Kim, arXiv 2310.18882)."""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import NonNegativeInt, PositiveInt

from models.frozen import Spec
from models.structures.base import Patch, StructureSpec, check_range, counted

DARKEST = 0.85  # opacity where all rectangles overlap; each adds by its share of the ranks


@final
class Rectangle(Spec):
    """`rank` rank-1 terms on one rectangle, which may wrap around the border (cyclic).

    A rectangle whose factors would hold more numbers than it has entries is a dense tile.
    """

    row_start: NonNegativeInt
    row_count: PositiveInt
    column_start: NonNegativeInt
    column_count: PositiveInt
    rank: PositiveInt

    @property
    def is_tile(self) -> bool:
        """Whether the dense tile is no larger than the two factors."""
        factors = self.rank * (self.row_count + self.column_count)
        return self.row_count * self.column_count <= factors

    @property
    def size(self) -> int:
        """Numbers stored: the two factors, or the dense tile where that is no larger."""
        area = self.row_count * self.column_count
        return min(area, self.rank * (self.row_count + self.column_count))


@final
class Gblr(StructureSpec):
    """A sum of low-rank rectangles (Lee & Kim, ICLR 2024, arXiv 2310.18882).

    Of no rectangles it is the zero matrix, which costs nothing: a search may leave no more than the
    bias of a layer that is of no use.
    """

    kind: Literal["gblr"] = "gblr"
    rectangles: tuple[Rectangle, ...]

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit rectangles no larger than the matrix, that start inside it."""
        where = f"a rectangle of a {rows} x {columns} matrix"
        for one in self.rectangles:
            smaller = min(one.row_count, one.column_count)
            for name, value, low, high in (
                ("row_start", one.row_start, 0, rows - 1),
                ("row_count", one.row_count, 1, rows),
                ("column_start", one.column_start, 0, columns - 1),
                ("column_count", one.column_count, 1, columns),
                ("rank", one.rank, 1, smaller),
            ):
                check_range(name, value, low=low, high=high, where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """All rectangles."""
        return sum(rectangle.size for rectangle in self.rectangles)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["Gblr"]:
        """Yield one row or one column more in each rectangle."""
        for index, one in enumerate(self.rectangles):
            if one.row_count < rows:
                yield self._grown(index, row_count=one.row_count + 1)
            if one.column_count < columns:
                yield self._grown(index, column_count=one.column_count + 1)

    def in_words(self) -> str:
        """`5 rectangles, rank 12, 2 tiles` with the ranks' sum."""
        tiles = sum(rectangle.is_tile for rectangle in self.rectangles)
        ranks = sum(rectangle.rank for rectangle in self.rectangles if not rectangle.is_tile)
        parts = [
            f"{counted(len(self.rectangles) - tiles, 'rectangle')}, rank {ranks}",
            counted(tiles, "tile"),
        ]
        return ", ".join(part for part in parts if not part.startswith("0")) or "nothing"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the rectangles, the largest first."""
        total = sum(rectangle.rank for rectangle in self.rectangles)
        for one in sorted(self.rectangles, key=lambda one: -one.row_count * one.column_count):
            kind = "dense tile" if one.is_tile else f"rank {one.rank}"
            yield Patch(
                one.row_start,
                one.row_count,
                one.column_start,
                one.column_count,
                "tiles" if one.is_tile else "rectangles",
                1 - (1 - DARKEST) ** (one.rank / total),
                f"{kind}: {one.row_count} rows from {one.row_start}, "
                f"{one.column_count} columns from {one.column_start}, {one.size:,} numbers",
            )

    def _grown(self, index: int, **sides: int) -> "Gblr":
        grown = self.rectangles[index].model_copy(update=sides)
        changed = (*self.rectangles[:index], grown, *self.rectangles[index + 1 :])
        return self.model_copy(update={"rectangles": changed})
