"""Which sizes of a kind of structure are tried on a matrix, by arithmetic alone.

A kind is a structure with all but one of its knobs fixed; the one that is left sets the size.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeVar, assert_never, final, get_args

from models.structures import (
    Blast,
    BlockDiagonal,
    BlockLowRank,
    BlockSparse,
    Btt,
    Butterfly,
    ButterflyGadget,
    Circulant,
    Cp,
    Diagonals,
    Einsum,
    Gblr,
    GroupAndShuffle,
    Kronecker,
    LowDisplacementRank,
    LowRank,
    Rectangle,
    Structure,
    Sttp,
    Sum,
    Svdp,
    TensorTrain,
    ToeplitzLike,
)
from models.structures.base import StructureSpec, check_choice, check_matrix, check_range
from models.structures.factorisation import balanced_modes
from models.structures.sttp import most_inner_rank

S = TypeVar("S", bound=StructureSpec)

# All sizes follow from one decomposition of the matrix.
ClosedKind = Literal[
    "low rank",
    "SVDP",
    "block diagonal",
    "block sparse, tiles of 8",
    "block sparse, tiles of 16",
    "block sparse, tiles of 32",
    "block sparse, tiles of 64",
    "block low rank, 4 x 4",
    "BTT, 4 x 4",
    "BTT, 8 x 8",
    "Kronecker sum",
    "einsum, BTT point",
    "diagonals",
]
# The matrix chooses the places of rectangles and tiles, and how a sum divides its cost.
RectanglesKind = Literal["GBLR, rank 8", "GBLR, rank 32", "GBLR, rank 64"]
SumKind = Literal["low rank + block diagonal", "low rank + tiles of 16", "low rank + tiles of 64"]
# Each size is a structure of its own, to be fitted to the matrix.
GridKind = Literal[
    "Monarch, rank 1",
    "BLAST, 4 x 4",
    "BLAST, 16 x 16",
    "group and shuffle",
    "tensor train",
    "STTP",
    "CP",
    "butterfly",
    "butterfly gadget",
    "circulant",
    "Toeplitz-like",
    "low displacement rank",
]
# One list: a name that is none of them is one error.
Kind = Literal[ClosedKind, RectanglesKind, SumKind, GridKind]
CLOSED_KINDS: tuple[ClosedKind, ...] = get_args(ClosedKind)
CHOSEN_KINDS: tuple[RectanglesKind | SumKind, ...] = (
    *get_args(RectanglesKind),
    *get_args(SumKind),
)
GRID_KINDS: tuple[GridKind, ...] = get_args(GridKind)
KINDS: tuple[Kind, ...] = (*CLOSED_KINDS, *CHOSEN_KINDS, *GRID_KINDS)
# Of what a dense matrix costs: where no closed form gives all sizes, these are tried.
SHARES = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
# How a sum's cost may be divided: the parts that its low-rank part gets.
DIVISIONS = (0.5, 0.25, 0.4, 0.6, 0.75)
LARGEST = 1 << 24  # rows or columns: far above any layer, and few enough for lists of places
INNER_RANK = 16  # of spectral trains, where they can use as much
MOST_BUTTERFLIES = 4  # in a product: two stand for every circulant, more hardly ever fit better


def check_kind(kind: Kind) -> None:
    """Raise ValueError for what is none of the kinds, with the one it may mean."""
    check_choice("kind", kind, KINDS)


def _check_sides(*, rows: int, columns: int) -> None:
    check_matrix(rows=rows, columns=columns)
    for name, side in (("rows", rows), ("columns", columns)):
        check_range(name, side, low=1, high=LARGEST, where="a grid of sizes")


def saves(kind: Kind) -> Literal["macs", "parameters"]:
    """What a size of a kind is told by: shares are of this quantity of a dense matrix.

    CP and low displacement rank have few numbers, but never fewer MACs than dense.
    """
    check_kind(kind)
    return "parameters" if kind in ("CP", "low displacement rank") else "macs"


def cost(kind: Kind, structure: StructureSpec, *, rows: int, columns: int) -> int:
    """What a structure takes of the quantity that its kind saves."""
    if saves(kind) == "macs":
        return structure.mac_count(rows=rows, columns=columns)
    return structure.parameter_count(rows=rows, columns=columns)


def budgets(*, rows: int, columns: int, shares: Sequence[float] = SHARES) -> list[int]:
    """What the shares of a dense matrix come to, rising, all below the whole.

    ValueError unless there is at least one, and each is above 0 and at most 1.
    """
    _check_sides(rows=rows, columns=columns)
    if isinstance(shares, str) or not isinstance(shares, Collection) or not len(shares):
        raise ValueError(f"shares is {shares!r}, but a curve admits one number or more: (0.5,)")
    for share in shares:
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(
                f"a share of shares is {share!r}, but a dense matrix admits numbers above 0 up to 1"
            )
    dense = rows * columns
    # A share that was so many of them over all comes to as many again, though it was rounded.
    return sorted({min(int(share * dense + 1e-6), dense - 1) for share in shares})


def grid(
    kind: Kind, *, rows: int, columns: int, shares: Sequence[float] = SHARES
) -> tuple[Structure, ...]:
    """Of each share of a dense matrix's cost the member that holds most, the cheapest first.

    All fit and cost less than dense and more than the one before; there may be none. Where a matrix
    chooses the places of tiles, rectangles or ranks, these stand anywhere.
    """
    check_kind(kind)
    found: dict[int, Structure] = {}
    for budget in budgets(rows=rows, columns=columns, shares=shares):
        member = largest_within(kind, rows=rows, columns=columns, budget=budget)
        if member is not None:
            found[cost(kind, member, rows=rows, columns=columns)] = member
    return tuple(found[each] for each in sorted(found))


def largest_within(  # noqa: PLR0911, PLR0912 - one for each kind
    kind: Kind, *, rows: int, columns: int, budget: int
) -> Structure | None:
    """The member that holds most of those that fit and cost at most so much, if there is any.

    A dearer one may fit: of more blocks, of which some are padding alone.
    """
    check_kind(kind)
    _check_sides(rows=rows, columns=columns)
    check_range("budget", budget, low=0, where="a size")
    room = Room(kind, rows, columns, budget)
    if budget < 1:
        return None
    match kind:
        case "low rank":
            return room.most(lambda rank: LowRank(rank=rank))
        case "SVDP":
            return room.most(lambda rank: Svdp(rank=rank))
        case "block diagonal":
            return room.fewest(lambda blocks: BlockDiagonal(blocks=blocks))
        case "group and shuffle":
            return room.fewest(lambda groups: GroupAndShuffle(groups=groups))
        case "Monarch, rank 1":
            return room.most(lambda blocks: _monarch(blocks, rows=rows, columns=columns))
        case "BTT, 4 x 4" | "BTT, 8 x 8":
            blocks = knob(kind)
            return room.most(lambda rank: Btt(input_blocks=blocks, output_blocks=blocks, rank=rank))
        case "BLAST, 4 x 4" | "BLAST, 16 x 16":
            return room.most(lambda rank: Blast(blocks=knob(kind), rank=rank))
        case "block low rank, 4 x 4":
            return room.first([some_ranks(room, knob(kind))])
        case (
            "block sparse, tiles of 8"
            | "block sparse, tiles of 16"
            | "block sparse, tiles of 32"
            | "block sparse, tiles of 64"
        ):
            return room.first([some_tiles(room, knob(kind))])
        case "GBLR, rank 64" | "GBLR, rank 32" | "GBLR, rank 8":
            return room.first([some_rectangles(room, knob(kind))])
        case "low rank + block diagonal" | "low rank + tiles of 64" | "low rank + tiles of 16":
            return next(sums_within(kind, rows=rows, columns=columns, budget=budget), None)
        case "Kronecker sum":
            return room.most(lambda terms: kronecker(terms, rows=rows, columns=columns))
        case "einsum, BTT point":
            return room.first(Einsum.at("BTT", rho=power / 40) for power in range(20, -1, -1))
        case "tensor train":
            return room.most(lambda rank: _train(rank, rows=rows, columns=columns))
        case "STTP":
            return room.most(lambda rank: _spectral_train(rank, rows=rows, columns=columns))
        case "CP":
            modes = balanced_modes(columns, 2)
            return room.most(lambda terms: Cp(terms=terms, column_modes=modes))
        case "butterfly":
            return room.most(lambda blocks: Butterfly(blocks=blocks), at_most=MOST_BUTTERFLIES)
        case "butterfly gadget":
            return room.most(lambda side: _gadget(side, rows=rows, columns=columns))
        case "circulant":
            return room.first([Circulant()])
        case "Toeplitz-like":
            return room.most(lambda rank: ToeplitzLike(rank=rank))
        case "low displacement rank":
            return room.most(lambda rank: LowDisplacementRank(rank=rank))
        case "diagonals":
            return room.most(lambda reach: Diagonals(offsets=tuple(range(1 - reach, reach))))
        case _:
            assert_never(kind)


def sums_within(kind: SumKind, *, rows: int, columns: int, budget: int) -> Iterator[Sum]:
    """Yield the members of some divisions of the budget, half for each part first.

    The other part is as large as its division admits, and low rank takes what is left.
    """
    check_choice("kind", kind, get_args(SumKind))
    _check_sides(rows=rows, columns=columns)
    check_range("budget", budget, low=0, where="a sum")
    for division in DIVISIONS:
        room = Room(kind, rows, columns, budget - int(division * budget))
        other: BlockDiagonal | BlockSparse | None
        if kind == "low rank + block diagonal":
            other = room.fewest(lambda blocks: BlockDiagonal(blocks=blocks))
        else:
            other = room.first([some_tiles(room, knob(kind))])
        if other is not None:
            left = budget - other.mac_count(rows=rows, columns=columns)
            low_rank = Room(kind, rows, columns, left).most(lambda rank: LowRank(rank=rank))
            if low_rank is not None:
                yield Sum(parts=(low_rank, other))


def knob(kind: Kind) -> int:
    """The number in a kind's name: 16 of `tiles of 16` and of `16 x 16`; 0 where there is none."""
    last = kind.split()[-1]
    return int(last) if last.isdecimal() else 0


def kronecker(terms: int, *, rows: int, columns: int) -> Kronecker:
    """So many products of two factors that are about as long as each other."""
    block_rows, block_columns = balanced_modes(rows, 2)[-1], balanced_modes(columns, 2)[-1]
    return Kronecker(terms=terms, block_rows=block_rows, block_columns=block_columns)


@final
@dataclass(frozen=True, slots=True)
class Room:
    """What a member has to fit into: a matrix, and a budget of what its kind saves."""

    kind: Kind
    rows: int
    columns: int
    budget: int

    def admits(self, structure: StructureSpec) -> bool:
        """Whether it fits both."""
        try:
            taken = cost(self.kind, structure, rows=self.rows, columns=self.columns)
        except ValueError:
            return False
        return taken <= self.budget

    def first(self, candidates: Iterable[S | None]) -> S | None:
        """The first of the candidates that fits."""
        return next((one for one in candidates if one is not None and self.admits(one)), None)

    def most(self, make: Callable[[int], S], *, at_most: int | None = None) -> S | None:
        """The member with the largest knob that fits, for one whose cost rises with it."""
        low, high = 0, at_most or max(self.rows, self.columns)
        while low < high:
            middle = (low + high + 1) // 2
            if self.admits(make(middle)):
                low = middle
            else:
                high = middle - 1
        return make(low) if low else None

    def fewest(self, make: Callable[[int], S]) -> S | None:
        """The member with the smallest knob that fits: of n blocks costs no less than dense / n.

        More blocks may cost more where they are padded, but never hold more of the matrix.
        """
        if self.budget < 1:
            return None
        least = -(-self.rows * self.columns // self.budget)
        return self.first(make(n) for n in range(least, min(self.rows, self.columns) + 1))


def _drawing(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - places, no secrets


def some_tiles(room: Room, tile: int) -> BlockSparse | None:
    """As many tiles as the budget has room for, anywhere."""
    down, across = -(-room.rows // tile), -(-room.columns // tile)
    count = min(room.budget // tile**2, down * across)
    places = _drawing(tile).sample(range(down * across), count)
    positions = tuple(divmod(place, across) for place in sorted(places))
    return BlockSparse(tile=tile, positions=positions) if positions else None


def some_ranks(room: Room, blocks: int) -> BlockLowRank | None:
    """As many ranks as the budget has room for, in blocks drawn at random."""
    sides = -(-room.rows // blocks), -(-room.columns // blocks)
    count = min(room.budget // sum(sides), blocks**2 * min(sides))
    drawn = Counter(_drawing(blocks).choices(range(blocks**2), k=count))
    ranks = [min(drawn[place], *sides) for place in range(blocks**2)]
    rows = tuple(tuple(ranks[top : top + blocks]) for top in range(0, blocks**2, blocks))
    return BlockLowRank(ranks=rows) if any(ranks) else None


def some_rectangles(room: Room, rank: int) -> Gblr:
    """As many rectangles as the budget has room for, overlapping, some around the border.

    The last has as many ranks as are left for it. An only one for which not one is left is smaller.
    """
    drawn, left = _drawing(rank), min(room.budget, room.rows * room.columns)
    found: list[Rectangle] = []
    while True:
        top, tall = drawn.random(), max(1, int(drawn.uniform(0.3, 0.8) * room.rows))
        first, wide = drawn.random(), max(1, int(drawn.uniform(0.3, 0.8) * room.columns))
        one = Rectangle(
            row_start=int(top * room.rows),
            row_count=tall,
            column_start=int(first * room.columns),
            column_count=wide,
            rank=min(rank, tall, wide),
        )
        ways = (one.model_copy(update={"rank": each}) for each in range(one.rank, 0, -1))
        last = next((way for way in ways if way.size <= left), None)
        if last is None and not found:
            half = max(1, left // 2)
            sides = {"row_count": min(tall, half), "column_count": min(wide, half)}
            last = one.model_copy(update=sides | {"rank": 1})
        if last is not None:
            found.append(last)
            left -= last.size
        if last is None or last != one:
            return Gblr(rectangles=tuple(found))


def _monarch(blocks: int, *, rows: int, columns: int) -> Btt:
    """As many blocks along each side, or the fewest of that length: the others would be empty."""
    down, across = (-(-side // -(-side // blocks)) for side in (rows, columns))
    return Btt(input_blocks=across, output_blocks=down)


def _train(rank: int, *, rows: int, columns: int) -> TensorTrain:
    """Three cores: of two it would be a sum of Kronecker products."""
    row_modes, column_modes = balanced_modes(rows, 3), balanced_modes(columns, 3)
    ends = (row_modes[0] * column_modes[0], row_modes[2] * column_modes[2])
    ranks = (min(rank, ends[0]), min(rank, ends[1]))
    return TensorTrain(row_modes=row_modes, column_modes=column_modes, ranks=ranks)


def _spectral_train(rank: int, *, rows: int, columns: int) -> Sttp:
    row_modes, column_modes = balanced_modes(rows, 2), balanced_modes(columns, 2)
    inner_rank = min(INNER_RANK, most_inner_rank(rank, row_modes, column_modes))
    return Sttp(rank=rank, inner_rank=inner_rank, row_modes=row_modes, column_modes=column_modes)


def _gadget(side: int, *, rows: int, columns: int) -> ButterflyGadget:
    """A core of the matrix's own proportions."""
    longer = max(rows, columns)
    return ButterflyGadget(
        core_rows=max(1, side * rows // longer), core_columns=max(1, side * columns // longer)
    )
