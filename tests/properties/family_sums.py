"""Sums of structures as the laws see them."""

from collections.abc import Sequence

from hypothesis import strategies as st

from models.structures import BlockDiagonal, BlockLowRank, LowRank, Structure, Sum
from tests.properties.family import Family
from tests.properties.family_blocks import band_of_tiles, grids_of_ranks, some_tiles

REASON = "a sum of sets that are not all convex: alternating projections may settle elsewhere"


@st.composite
def with_blocks(draw: st.DrawFn, rows: int, columns: int) -> Sum:
    sizes = st.integers(1, min(rows, columns))
    parts = (LowRank(rank=draw(sizes)), BlockDiagonal(blocks=draw(sizes)))
    return Sum(parts=draw(st.permutations(parts)))


@st.composite
def with_tiles(draw: st.DrawFn, rows: int, columns: int) -> Sum:
    ranks = st.integers(1, min(rows, columns))
    parts = (LowRank(rank=draw(ranks)), draw(some_tiles(rows, columns)))
    return Sum(parts=draw(st.permutations(parts)))


@st.composite
def with_ranks(draw: st.DrawFn, rows: int, columns: int) -> Sum:
    ranks = st.integers(1, min(rows, columns))
    return Sum(parts=(LowRank(rank=draw(ranks)), draw(grids_of_ranks(rows, columns))))


def misfits(rows: int, columns: int) -> Sequence[tuple[Structure, str]]:
    good, large = LowRank(rank=1), min(rows, columns) + 1
    return [
        (Sum(parts=(good, LowRank(rank=large))), "rank"),
        (Sum(parts=(good, BlockDiagonal(blocks=large))), "blocks"),
    ]


FAMILIES = (
    Family(
        "low rank + block diagonal",
        with_blocks,
        misfits,
        lambda width: [
            Sum(parts=(LowRank(rank=width // 4), BlockDiagonal(blocks=4))),
            Sum(parts=(BlockDiagonal(blocks=5), LowRank(rank=1), LowRank(rank=width // 8))),
        ],
        exempt={"a member is projected onto itself": REASON},
        fits=8,
    ),
    Family(
        "low rank + block low rank",
        with_ranks,
        misfits,
        lambda width: [
            Sum(parts=(LowRank(rank=width // 8), BlockLowRank(ranks=((width // 16,) * 4,) * 4)))
        ],
        exempt={"a member is projected onto itself": REASON},
        fits=5,
    ),
    Family(
        "low rank + block sparse",
        with_tiles,
        misfits,
        lambda width: [Sum(parts=(LowRank(rank=width // 8), band_of_tiles(width)))],
        exempt={"a member is projected onto itself": REASON},
        fits=8,
    ),
)
