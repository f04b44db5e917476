"""Dense: every entry free."""

from collections.abc import Iterator
from typing import Literal, final

from models.structures.base import Patch, StructureSpec, whole


@final
class Dense(StructureSpec):
    """Every entry free."""

    kind: Literal["dense"] = "dense"

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Fit every matrix."""

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """One number for each entry."""
        return rows * columns

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["Dense"]:
        """Yield nothing: no matrix is larger."""
        yield from ()

    def in_words(self) -> str:
        """`dense`."""
        return "dense"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the whole matrix."""
        yield whole(rows=rows, columns=columns, tone="dense", opacity=0.7)
