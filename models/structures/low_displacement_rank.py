"""Low displacement rank with learned operators: shifts whose weights are trained."""

from collections.abc import Iterator
from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import Patch, StructureSpec, check_range, matrix_in_words, whole
from models.structures.circulant import diagonal

# Weights for each row of an operator: below the diagonal with the corner, or on it and above, too.
BANDS = {"subdiagonal": 1, "tridiagonal": 3}


@final
class LowDisplacementRank(StructureSpec):
    """W = sum over u of A^u G H^T B^u, A and B learned operators (Thomas et al., NeurIPS 2018).

    It has few numbers, not few MACs: its fast product is slower than the matrix itself at the sizes
    of neural networks, so the matrix is made once for every call.
    """

    kind: Literal["low_displacement_rank"] = "low_displacement_rank"
    rank: PositiveInt
    operators: Literal["subdiagonal", "tridiagonal"] = "subdiagonal"

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit displacement ranks up to the smaller side."""
        where = matrix_in_words(rows=rows, columns=columns)
        check_range("rank", self.rank, low=1, high=min(rows, columns), where=where)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """Generators and operators: 2 n (r + 1) or 2 n (r + 3) for a square matrix."""
        return (rows + columns) * (self.rank + BANDS[self.operators])

    def mac_count(self, *, rows: int, columns: int) -> int:
        """As dense. Making the matrix is done once for all inputs, and not counted."""
        return rows * columns

    def larger(self, *, rows: int, columns: int) -> Iterator["LowDisplacementRank"]:
        """Yield one rank more, and the richer operators."""
        if self.rank < min(rows, columns):
            yield self.model_copy(update={"rank": self.rank + 1})
        if self.operators == "subdiagonal":
            yield self.model_copy(update={"operators": "tridiagonal"})

    def in_words(self) -> str:
        """`displacement rank 4, subdiagonal`."""
        return f"displacement rank {self.rank}, {self.operators}"

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the generators along the edges, and a diagonal along which they are moved."""
        yield whole(rows=rows, columns=columns, tone="shift-invariant", opacity=0.2)
        yield from diagonal(rows=rows, columns=columns)
        yield Patch(0, rows, 0, self.rank, "shift-invariant", 0.5, "a generator of the rows")
        yield Patch(0, self.rank, 0, columns, "shift-invariant", 0.5, "a generator of the columns")
