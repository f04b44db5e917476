"""For every structure, its largest member within a number of MACs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from models.structured import (
    block_diagonal,
    block_low_rank,
    block_sparse,
    btt,
    diagonals_choice,
    kronecker,
    low_rank,
    svdp,
)
from models.structured.error_curve import ErrorCurve
from models.structures import (
    Blast,
    BlockDiagonal,
    BlockLowRank,
    BlockSparse,
    Btt,
    Butterfly,
    ButterflyGadget,
    Circulant,
    Diagonals,
    Einsum,
    Gblr,
    GroupAndShuffle,
    Kronecker,
    LowRank,
    Rectangle,
    Structure,
    Sttp,
    Sum,
    Svdp,
    TensorTrain,
    ToeplitzLike,
)

Size = Callable[[int, int, int], Structure | None]


def first_within(candidates: Callable[[int, int], Sequence[Structure]]) -> Size:
    """The first of the candidates, largest first, that fits the matrix and the MACs."""

    def within(rows: int, columns: int, macs: int) -> Structure | None:
        found = candidates(rows, columns)
        return next((one for one in found if _fits(one, rows, columns, macs)), None)

    return within


def largest(make: Callable[[int], Structure]) -> Size:
    """The member with the largest knob, of 1 and more, that fits the matrix and the MACs."""

    def within(rows: int, columns: int, macs: int) -> Structure | None:
        low, high = 0, max(rows, columns)
        while low < high:
            middle = (low + high + 1) // 2
            if _fits(make(middle), rows, columns, macs):
                low = middle
            else:
                high = middle - 1
        return make(low) if low else None

    return within


def _fits(structure: Structure, rows: int, columns: int, macs: int) -> bool:
    try:
        structure.check_fits(rows=rows, columns=columns)
    except ValueError:
        return False
    return structure.mac_count(rows=rows, columns=columns) <= macs


def fewest(make: Callable[[int], Structure]) -> Size:
    """The member with the smallest knob, for one of which there is less the more there are."""
    return first_within(lambda rows, columns: [make(n + 1) for n in range(min(rows, columns))])


def random_tiles(tile: int) -> Size:
    """As many tiles as fit, anywhere."""

    def within(rows: int, columns: int, macs: int) -> Structure | None:
        down, across = -(-rows // tile), -(-columns // tile)
        order = torch.randperm(down * across, generator=torch.Generator().manual_seed(tile))
        kept = sorted(order[: macs // tile**2].tolist())
        positions = tuple((index // across, index % across) for index in kept)
        return BlockSparse(tile=tile, positions=positions) if positions else None

    return within


def random_ranks(blocks: int) -> Size:
    """As many ranks as fit, on blocks drawn at random."""

    def within(rows: int, columns: int, macs: int) -> Structure | None:
        sides = -(-rows // blocks), -(-columns // blocks)
        generator = torch.Generator().manual_seed(blocks)
        drawn = torch.randint(blocks**2, (macs // sum(sides),), generator=generator)
        ranks = torch.bincount(drawn, minlength=blocks**2).clamp(max=min(sides))
        return BlockLowRank(ranks=tuple(map(tuple, ranks.view(blocks, blocks).tolist())))

    return within


def grouped(rank: int) -> Size:
    """Rectangles of one rank anywhere, overlapping, some of them around the border."""

    def within(rows: int, columns: int, macs: int) -> Structure | None:
        generator = torch.Generator().manual_seed(rank)
        found: list[Rectangle] = []
        left = macs
        while True:
            draws = torch.rand(4, generator=generator).tolist()
            rectangle = Rectangle(
                row_start=int(draws[0] * rows),
                row_count=int((0.3 + 0.5 * draws[1]) * rows),
                column_start=int(draws[2] * columns),
                column_count=int((0.3 + 0.5 * draws[3]) * columns),
                rank=rank,
            )
            if rectangle.size > left or rank > min(rectangle.row_count, rectangle.column_count):
                return Gblr(rectangles=tuple(found)) if found else None
            found.append(rectangle)
            left -= rectangle.size

    return within


def with_low_rank(other: Size) -> Size:
    """Half of the MACs for a low-rank part, the rest for another."""

    def within(rows: int, columns: int, macs: int) -> Structure | None:
        found = other(rows, columns, macs // 2)
        if found is None:
            return None
        assert not isinstance(found, Sum)
        left = macs - found.mac_count(rows=rows, columns=columns)
        rank = left // (rows + columns)
        return Sum(parts=(LowRank(rank=rank), found)) if rank else None

    return within


def trains(rows: int, columns: int) -> list[Structure]:
    """Tensor trains of two cores, the largest rank first."""
    modes = {side: (side // 24, 24) if side % 24 == 0 else (side, 1) for side in (rows, columns)}
    top = min(modes[rows][0] * modes[columns][0], modes[rows][1] * modes[columns][1])
    return [
        TensorTrain(row_modes=modes[rows], column_modes=modes[columns], ranks=(rank,))
        for rank in range(top, 0, -1)
    ]


def spectral_trains(rows: int, columns: int) -> list[Structure]:
    """Spectral tensor trains of two cores a side and an inner rank of 16."""
    modes = {side: (side // 24, 24) if side % 24 == 0 else (1, side) for side in (rows, columns)}
    return [
        Sttp(rank=rank, inner_rank=16, row_modes=modes[rows], column_modes=modes[columns])
        for rank in range(min(rows, columns), 0, -1)
    ]


def gadgets(rows: int, columns: int) -> list[Structure]:
    """Butterfly gadgets with cores of the matrix's own proportions, the largest first."""
    sides = range(max(rows, columns), 0, -1)
    return [
        ButterflyGadget(
            core_rows=max(1, side * rows // max(rows, columns)),
            core_columns=max(1, side * columns // max(rows, columns)),
        )
        for side in sides
    ]


def bands(rows: int, columns: int) -> list[Structure]:
    """Bands around the diagonal, the widest first."""
    return [
        Diagonals(offsets=tuple(range(-reach, reach + 1)))
        for reach in range(min(rows, columns) - 1, -1, -1)
    ]


SIZES: Mapping[str, Size] = {
    "low rank": largest(lambda rank: LowRank(rank=rank)),
    "block diagonal": fewest(lambda blocks: BlockDiagonal(blocks=blocks)),
    "block sparse, tiles of 32": random_tiles(32),
    "block sparse, tiles of 64": random_tiles(64),
    "block low rank, 4 x 4": random_ranks(4),
    "BTT, 4 x 4": largest(lambda rank: Btt(input_blocks=4, output_blocks=4, rank=rank)),
    "BTT, 8 x 8": largest(lambda rank: Btt(input_blocks=8, output_blocks=8, rank=rank)),
    "Monarch, rank 1": largest(lambda blocks: Btt(input_blocks=blocks, output_blocks=blocks)),
    "BLAST, 4 x 4": largest(lambda rank: Blast(blocks=4, rank=rank)),
    "BLAST, 16 x 16": largest(lambda rank: Blast(blocks=16, rank=rank)),
    "GBLR, rank 64": grouped(64),
    "GBLR, rank 32": grouped(32),
    "low rank + block diagonal": with_low_rank(fewest(lambda n: BlockDiagonal(blocks=n))),
    "low rank + tiles of 64": with_low_rank(random_tiles(64)),
    "Kronecker sum": largest(lambda n: Kronecker(terms=n, block_rows=32, block_columns=32)),
    "einsum, BTT point": first_within(
        lambda _rows, _columns: [Einsum.at("BTT", rho=n / 40) for n in range(20, -1, -1)]
    ),
    "tensor train": first_within(trains),
    "STTP": first_within(spectral_trains),
    "SVDP": largest(lambda rank: Svdp(rank=rank)),
    "butterfly": first_within(lambda _rows, _columns: [Butterfly()]),
    "butterfly gadget": first_within(gadgets),
    "group and shuffle": fewest(lambda groups: GroupAndShuffle(groups=groups)),
    "circulant": first_within(lambda _rows, _columns: [Circulant()]),
    "Toeplitz-like": largest(lambda rank: ToeplitzLike(rank=rank)),
    "diagonals": first_within(bands),
}
# Structures whose pieces the matrix chooses, or whose sizes are nested.
CURVES: Mapping[str, Callable[[Tensor, Tensor | None], ErrorCurve]] = {
    "low rank": low_rank.error_curve,
    "block diagonal": block_diagonal.error_curve,
    "block sparse, tiles of 32": partial(block_sparse.error_curve, tile=32),
    "block sparse, tiles of 64": partial(block_sparse.error_curve, tile=64),
    "block low rank, 4 x 4": partial(block_low_rank.error_curve, row_blocks=4, column_blocks=4),
    "BTT, 4 x 4": partial(btt.error_curve, input_blocks=4, output_blocks=4),
    "BTT, 8 x 8": partial(btt.error_curve, input_blocks=8, output_blocks=8),
    "Kronecker sum": partial(kronecker.error_curve, block_rows=32, block_columns=32),
    "SVDP": svdp.error_curve,
    "diagonals": diagonals_choice.error_curve,
}


def chosen(name: str, weight: Tensor, macs: int) -> Structure | None:
    """The member within the MACs; where there is a curve, its best, or ValueError if none is."""
    rows, columns = weight.shape
    curve = CURVES.get(name)
    if curve is None:
        return SIZES[name](rows, columns, macs)
    return curve(weight, None).best_within(macs)
