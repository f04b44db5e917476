"""The families whose matrix is cut into a grid of equal blocks."""

from collections.abc import Sequence

from hypothesis import strategies as st

from models.structured import block_low_rank, block_sparse, btt
from models.structures import BlockLowRank, BlockSparse, Btt
from tests.properties.family import Family


@st.composite
def some_tiles(draw: st.DrawFn, rows: int, columns: int) -> BlockSparse:
    tile = draw(st.integers(1, max(rows, columns)))
    places = st.tuples(st.integers(0, (rows - 1) // tile), st.integers(0, (columns - 1) // tile))
    chosen = draw(st.lists(places, min_size=1, max_size=6, unique=True))
    return BlockSparse(tile=tile, positions=tuple(chosen))


@st.composite
def grids_of_ranks(draw: st.DrawFn, rows: int, columns: int) -> BlockLowRank:
    height, width = draw(st.integers(1, min(rows, 4))), draw(st.integers(1, min(columns, 4)))
    most = min(-(-rows // height), -(-columns // width))
    row = st.lists(st.integers(0, most), min_size=width, max_size=width)
    grid = draw(st.lists(row, min_size=height, max_size=height).filter(lambda g: any(map(any, g))))
    return BlockLowRank(ranks=tuple(map(tuple, grid)))


@st.composite
def tensor_trains(draw: st.DrawFn, rows: int, columns: int) -> Btt:
    groups, bands = draw(st.integers(1, columns)), draw(st.integers(1, rows))
    most = min(-(-rows // bands), -(-columns // groups))
    return Btt(input_blocks=groups, output_blocks=bands, rank=draw(st.integers(1, most)))


def band_of_tiles(width: int) -> BlockSparse:
    """Three tiles in each row and each column of the grid, around the border."""
    count = 8
    tile = width // count
    places = [(row, (row + step) % count) for row in range(count) for step in (0, 1, 3)]
    return BlockSparse(tile=tile, positions=tuple(places))


def mixed_ranks(width: int) -> BlockLowRank:
    """Low ranks but on the diagonal, one block left out in each row and column."""
    high, low = width // 8, width // 16
    row = (high, low, 0, low)
    return BlockLowRank(ranks=tuple(row[-shift:] + row[:-shift] for shift in range(4)))


FAMILIES: Sequence[Family] = (
    Family(
        "block low rank",
        grids_of_ranks,
        lambda rows, columns: [
            (BlockLowRank(ranks=((1,),) * (rows + 1)), "number of rows of ranks"),
            (BlockLowRank(ranks=((1,) * (columns + 1),)), "number of columns of ranks"),
            (BlockLowRank(ranks=((min(rows, columns) + 1,),)), "a rank of ranks"),
        ],
        lambda width: [mixed_ranks(width)],
        curve=lambda weight, moment: block_low_rank.error_curve(
            weight,
            moment,
            row_blocks=min(2, weight.shape[0]),
            column_blocks=min(3, weight.shape[1]),
        ),
    ),
    Family(
        "block sparse",
        some_tiles,
        lambda rows, columns: [
            (BlockSparse(tile=max(rows, columns) + 1, positions=((0, 0),)), "tile"),
            (BlockSparse(tile=1, positions=((rows, 0),)), "row of positions"),
            (BlockSparse(tile=1, positions=((0, columns),)), "column of positions"),
        ],
        lambda width: [band_of_tiles(width)],
        curve=lambda weight, moment: block_sparse.error_curve(
            weight, moment, tile=min(2, max(weight.shape))
        ),
    ),
    Family(
        "BTT",
        tensor_trains,
        lambda rows, columns: [
            (Btt(input_blocks=columns + 1, output_blocks=1), "input_blocks"),
            (Btt(input_blocks=1, output_blocks=rows + 1), "output_blocks"),
            (Btt(input_blocks=1, output_blocks=1, rank=min(rows, columns) + 1), "rank"),
        ],
        lambda width: [
            Btt(input_blocks=4, output_blocks=2, rank=width // 16),
            Btt(input_blocks=16, output_blocks=16),
        ],
        curve=lambda weight, moment: btt.error_curve(
            weight,
            moment,
            input_blocks=min(2, weight.shape[1]),
            output_blocks=min(3, weight.shape[0]),
        ),
    ),
)
