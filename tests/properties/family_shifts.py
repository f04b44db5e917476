"""Matrices that hardly change when shifted: circulant, Toeplitz-like, low displacement rank."""

from hypothesis import strategies as st

from models.structures import Circulant, LowDisplacementRank, ToeplitzLike
from tests.properties.family import Family

FOURIER = "a FLOP counter does not see Fourier transforms"
SHARED = (
    "a number that works along a diagonal moves by the sum of many wishes, which at random inputs "
    "hardly agree"
)

FAMILIES = (
    Family(
        "circulant",
        lambda _rows, _columns: st.just(Circulant()),
        lambda _rows, _columns: [],
        lambda _width: [Circulant()],
        exempt={
            "a FLOP counter sees the MACs": FOURIER,
            "one step moves features as a dense layer's": SHARED,
        },
    ),
    Family(
        "low displacement rank",
        lambda rows, columns: st.builds(
            LowDisplacementRank,
            rank=st.integers(1, min(rows, columns)),
            operators=st.sampled_from(["subdiagonal", "tridiagonal"]),
        ),
        lambda rows, columns: [(LowDisplacementRank(rank=min(rows, columns) + 1), "rank")],
        lambda _width: [
            LowDisplacementRank(rank=2),
            LowDisplacementRank(rank=1, operators="tridiagonal"),
        ],
        exempt={
            "a FLOP counter sees the MACs": "the matrix is made once for all inputs, by products "
            "that are seen, too",
            "a member is projected onto itself": "the operators are found by a gradient fit",
            "one step moves features as a dense layer's": SHARED,
        },
        fits=3,
    ),
    Family(
        "Toeplitz-like",
        lambda rows, columns: st.integers(1, min(rows, columns)).map(
            lambda rank: ToeplitzLike(rank=rank)
        ),
        lambda rows, columns: [(ToeplitzLike(rank=min(rows, columns) + 1), "rank")],
        lambda _width: [ToeplitzLike(rank=2), ToeplitzLike(rank=5)],
        exempt={
            "a FLOP counter sees the MACs": FOURIER,
            "one step moves features as a dense layer's": SHARED,
        },
        fits=6,
    ),
)
