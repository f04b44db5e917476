"""A sum of Kronecker products: W = sum_i A_i (x) B_i, every block a mixture of the same few."""

from typing import Literal, final

from pydantic import PositiveInt

from models.structures.base import check_range, check_sides, counted, matrix_in_words
from models.structures.two_cores import CoreSizes, TwoCores


@final
class Kronecker(TwoCores):
    """W = sum_i A_i (x) B_i with `terms` products, B of `block_rows x block_columns`.

    A is the grid of blocks of that size, padded up. MACs are more than parameters, as each number
    of a factor works in many places of the matrix.
    """

    kind: Literal["kronecker"] = "kronecker"
    terms: PositiveInt
    block_rows: PositiveInt
    block_columns: PositiveInt

    def sizes(self, *, rows: int, columns: int) -> CoreSizes:
        """A spans the grid, B a block, and no index is in both."""
        return CoreSizes(
            alpha=-(-columns // self.block_columns),
            beta=self.block_columns,
            gamma=1,
            delta=-(-rows // self.block_rows),
            epsilon=self.block_rows,
            phi=1,
            rho=self.terms,
        )

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit blocks no larger than the matrix, and as many terms as the smaller factor needs."""
        of_rows, of_columns = ("block_rows", self.block_rows), ("block_columns", self.block_columns)
        check_sides(of_rows, of_columns, rows=rows, columns=columns)
        most = self.sizes(rows=rows, columns=columns).most_terms
        where = matrix_in_words(rows=rows, columns=columns)
        where += f" in blocks of {self.block_rows} x {self.block_columns}"
        check_range("terms", self.terms, low=1, high=most, where=where)

    def with_terms(self, terms: int, *, rows: int, columns: int) -> "Kronecker | None":
        """As many terms, up to what the smaller factor needs."""
        fits = terms <= self.sizes(rows=rows, columns=columns).most_terms
        return self.model_copy(update={"terms": terms}) if fits else None

    def in_words(self) -> str:
        """`2 Kronecker products, blocks 16 x 32`."""
        products = counted(self.terms, "Kronecker product")
        return f"{products}, blocks {self.block_rows} x {self.block_columns}"
