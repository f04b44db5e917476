"""BLAST as the laws see it."""

from collections.abc import Sequence

from hypothesis import strategies as st

from models.structures import Blast
from tests.properties.family import Family


@st.composite
def grids(draw: st.DrawFn, rows: int, columns: int) -> Blast:
    smaller = min(rows, columns)
    return Blast(blocks=draw(st.integers(1, smaller)), rank=draw(st.integers(1, smaller)))


def too_large(rows: int, columns: int) -> Sequence[tuple[Blast, str]]:
    smaller = min(rows, columns)
    return [
        (Blast(blocks=smaller + 1, rank=1), "blocks"),
        (Blast(blocks=1, rank=smaller + 1), "rank"),
        (Blast(blocks=10**12, rank=10**12), "blocks"),
    ]


FAMILY = Family(
    "BLAST",
    grids,
    too_large,
    lambda width: [
        Blast(blocks=4, rank=width // 4),
        Blast(blocks=16, rank=width // 4),
        Blast(blocks=5, rank=width),
    ],
    exempt={
        "a member is projected onto itself": "the factors meet in products of three, and "
        "alternating least squares may settle in a local minimum",
    },
    fits=8,
)
