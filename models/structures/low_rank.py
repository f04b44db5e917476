"""Low rank: W = U V^T with `rank` columns in U and V."""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole


@final
class LowRank(StructureSpec):
    """W = U V^T with `rank` columns in U and V."""

    kind: Literal["low_rank"] = "low_rank"
    rank: PositiveInt

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit ranks up to the smaller side."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_range("rank", self.rank, low=1, high=min(rows, columns), where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """Two factors."""
        return self.rank * (rows + columns)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """One for each number."""
        return self.parameter_count(rows=rows, columns=columns)

    def larger(self, *, rows: int, columns: int) -> Iterator["LowRank"]:
        """Yield one rank more."""
        if self.rank < min(rows, columns):
            yield LowRank(rank=self.rank + 1)

    def in_words(self) -> str:
        """`low rank, 4`."""
        return f"low rank, {self.rank}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the two factors at their true sizes: U along the left edge, V^T along the top."""
        yield whole(rows=rows, columns=columns, tone="low rank", opacity=0.12)
        yield Patch(0, rows, 0, self.rank, "low rank")
        yield Patch(0, self.rank, 0, columns, "low rank")
