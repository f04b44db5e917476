"""The one list of matrix structures: a family that stands here has to keep every law."""

from collections.abc import Sequence

from hypothesis import strategies as st

from models.structured import block_diagonal, low_rank
from models.structures import BlockDiagonal, Dense, Gblr, LowRank, Rectangle
from tests.properties import (
    family_blast,
    family_blocks,
    family_butterfly,
    family_cp,
    family_diagonals,
    family_group_and_shuffle,
    family_shifts,
    family_spectral,
    family_sums,
    family_tensor_train,
    family_two_cores,
)
from tests.properties.family import Family


@st.composite
def rectangles(draw: st.DrawFn, rows: int, columns: int) -> Rectangle:
    height, width = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    return Rectangle(
        row_start=draw(st.integers(0, rows - 1)),
        row_count=height,
        column_start=draw(st.integers(0, columns - 1)),
        column_count=width,
        rank=draw(st.integers(1, min(height, width))),
    )


def overlapping(width: int) -> Gblr:
    """Rectangles over everything, over a part, and a tile that wraps around the border."""
    quarter = max(1, width // 4)
    whole = {"row_start": 1, "row_count": width, "column_start": 0, "column_count": width}
    band = {"row_start": 2, "row_count": 2 * quarter, "column_start": 1, "column_count": quarter}
    tile = band | {"row_start": width - 1, "row_count": quarter, "rank": quarter}
    ranks = {"rank": max(1, width // 16)}
    found = (whole | ranks, band | ranks, tile)
    return Gblr(rectangles=tuple(Rectangle.model_validate(fields) for fields in found))


FAMILIES: Sequence[Family] = (
    family_blast.FAMILY,
    Family(
        "block diagonal",
        lambda rows, columns: st.integers(1, min(rows, columns)).map(
            lambda blocks: BlockDiagonal(blocks=blocks)
        ),
        lambda rows, columns: [(BlockDiagonal(blocks=min(rows, columns) + 1), "blocks")],
        lambda width: [BlockDiagonal(blocks=4), BlockDiagonal(blocks=5)],
        curve=block_diagonal.error_curve,
    ),
    *family_blocks.FAMILIES,
    *family_butterfly.FAMILIES,
    family_butterfly.GADGET,
    Family(
        "dense",
        lambda _rows, _columns: st.just(Dense()),
        lambda _rows, _columns: [],
        lambda _width: [Dense()],
    ),
    *family_diagonals.FAMILIES,
    Family(
        "GBLR",
        lambda rows, columns: st.lists(rectangles(rows, columns), max_size=4).map(
            lambda found: Gblr(rectangles=tuple(found))
        ),
        lambda rows, columns: [
            (
                Gblr(
                    rectangles=(
                        Rectangle(
                            row_start=0,
                            row_count=rows + 1,
                            column_start=0,
                            column_count=1,
                            rank=1,
                        ),
                    )
                ),
                "row_count",
            )
        ],
        lambda width: [overlapping(width)],
        exempt={
            "a member is projected onto itself": "where rectangles overlap, their sums are neither "
            "convex nor closed, and descent may stop at a stationary point",
            "a FLOP counter sees the MACs": "the packed form multiplies zeros outside of the "
            "rectangles, where that takes less time",
        },
    ),
    *family_group_and_shuffle.FAMILIES,
    Family(
        "low rank",
        lambda rows, columns: st.integers(1, min(rows, columns)).map(
            lambda rank: LowRank(rank=rank)
        ),
        lambda rows, columns: [(LowRank(rank=min(rows, columns) + 1), "rank")],
        lambda width: [LowRank(rank=max(1, width // 4)), LowRank(rank=1)],
        curve=low_rank.error_curve,
    ),
    *family_spectral.FAMILIES,
    *family_two_cores.FAMILIES,
    *family_shifts.FAMILIES,
    *family_tensor_train.FAMILIES,
    *family_cp.FAMILIES,
    *family_sums.FAMILIES,
)
