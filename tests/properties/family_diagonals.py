"""Diagonals and free entries, for the laws."""

from functools import partial

from hypothesis import strategies as st

from models.structured import diagonals_choice
from models.structures import Diagonals
from tests.properties.family import Family

REASON = (
    "one multiply-add for each number is done by an embedding bag, which the counter does not see"
)


@st.composite
def bands_and_entries(draw: st.DrawFn, rows: int, columns: int) -> Diagonals:
    everywhere = st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1))
    entries = draw(st.sets(everywhere, max_size=6))
    fewest = 0 if entries else 1
    offsets = draw(st.sets(st.integers(1 - rows, columns - 1), min_size=fewest))
    return Diagonals(
        offsets=tuple(sorted(offsets)),
        entries=tuple(sorted(at for at in entries if at[1] - at[0] not in offsets)),
    )


def misfits(rows: int, columns: int) -> list[tuple[Diagonals, str]]:
    return [
        (Diagonals(offsets=(-rows,)), "offsets"),
        (Diagonals(offsets=(0, columns)), "offsets"),
        (Diagonals(offsets=(), entries=((rows, 0),)), "row of entries"),
        (Diagonals(offsets=(), entries=((0, columns),)), "column of entries"),
    ]


def at_width(width: int) -> list[Diagonals]:
    return [
        Diagonals(offsets=(-1, 0, 1, width // 2), entries=((0, width - 1), (2, 5))),
        Diagonals(offsets=tuple(range(-3, 4))),
    ]


FAMILIES = (
    Family(
        "diagonals",
        bands_and_entries,
        misfits,
        at_width,
        exempt={"a FLOP counter sees the MACs": REASON},
        curve=diagonals_choice.error_curve,
    ),
    Family(
        "diagonals and a sparse rest",
        bands_and_entries,
        misfits,
        at_width,
        exempt={"a FLOP counter sees the MACs": REASON},
        curve=partial(diagonals_choice.error_curve, rest=0.5),
        fits=10,
    ),
)
