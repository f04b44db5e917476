"""BTT mixture of experts: rank slices of a block tensor-train, of which each input uses a few.

It stands for no single matrix, as the choice depends on the input: it is in no union of structures.
"""

from typing import Literal, final

from pydantic import PositiveInt, model_validator

from models.structures.base import MatrixSpec, check_range, check_sides


@final
class BttMoe(MatrixSpec):
    """`experts` grids of `output_blocks x input_blocks` blocks of one rank; `active` for an input.

    Potapczynski et al., NeurIPS 2024, arXiv 2410.02117. Sizes that do not divide are padded up.
    """

    kind: Literal["btt_moe"] = "btt_moe"
    input_blocks: PositiveInt
    output_blocks: PositiveInt
    rank: PositiveInt = 1  # of each expert
    experts: PositiveInt = 8
    active: PositiveInt = 2

    @model_validator(mode="after")
    def _active_are_experts(self) -> "BttMoe":
        where = f"a mixture of {self.experts} experts"
        check_range("active", self.active, low=1, high=self.experts, where=where)
        return self

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit as many blocks as a side has entries, and in all as much rank as a block has."""
        of_rows, of_columns = (
            ("output_blocks", self.output_blocks),
            ("input_blocks", self.input_blocks),
        )
        check_sides(of_rows, of_columns, rows=rows, columns=columns)
        height, width = self.block_sides(rows=rows, columns=columns)
        check_range(
            f"experts {self.experts} times rank {self.rank}",
            self.experts * self.rank,
            low=1,
            high=min(height, width),
            where=f"a {height} x {width} block",
        )

    def block_sides(self, *, rows: int, columns: int) -> tuple[int, int]:
        """Height and width of a block, padding included."""
        return -(-rows // self.output_blocks), -(-columns // self.input_blocks)

    def expert_size(self, *, rows: int, columns: int) -> int:
        """Numbers of one expert: two factors for each block."""
        height, width = self.block_sides(rows=rows, columns=columns)
        return self.rank * self.input_blocks * self.output_blocks * (height + width)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """All experts, and the router."""
        expert = self.expert_size(rows=rows, columns=columns)
        return self.experts * (expert + columns)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """The active experts, and the router."""
        expert = self.expert_size(rows=rows, columns=columns)
        return self.active * expert + self.experts * columns

    def in_words(self) -> str:
        """`BTT, 4 x 4 blocks, 2 of 8 experts of rank 1`."""
        grid = f"BTT, {self.output_blocks} x {self.input_blocks} blocks"
        return f"{grid}, {self.active} of {self.experts} experts of rank {self.rank}"
