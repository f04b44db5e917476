"""What group-and-shuffle matrices look like to the laws."""

from hypothesis import strategies as st

from models.structures import GroupAndShuffle, Structure
from tests.properties.family import Family


def two_factors(rows: int, columns: int) -> st.SearchStrategy[Structure]:
    return st.builds(GroupAndShuffle, groups=st.integers(1, min(rows, columns)))


def several_factors(rows: int, columns: int) -> st.SearchStrategy[Structure]:
    return st.builds(
        GroupAndShuffle, groups=st.integers(1, min(rows, columns)), factors=st.integers(3, 4)
    )


def rotations(rows: int, columns: int) -> st.SearchStrategy[Structure]:
    most = min(rows, columns, max(rows, columns) - 1)
    return st.builds(
        GroupAndShuffle,
        groups=st.integers(1, most),
        factors=st.integers(2, 3),
        orthogonal=st.just(True),  # noqa: FBT003
    )


FAMILIES = (
    Family(
        "group and shuffle",
        two_factors,
        lambda rows, columns: [
            (GroupAndShuffle(groups=min(rows, columns) + 1), "groups"),
            (GroupAndShuffle(groups=1, factors=10**12), "factors"),
            (GroupAndShuffle(groups=1, factors=1), "factors"),
        ],
        lambda _width: [GroupAndShuffle(groups=4), GroupAndShuffle(groups=16)],
    ),
    Family(
        "group and shuffle, several factors",
        several_factors,
        lambda rows, columns: [(GroupAndShuffle(groups=min(rows, columns) + 1), "groups")],
        lambda _width: [GroupAndShuffle(groups=4, factors=3), GroupAndShuffle(groups=5, factors=4)],
        exempt={
            "a member is projected onto itself": "a product of three and more factors has no "
            "closed form: descent may stop at a stationary point"
        },
        fits=8,
    ),
    Family(
        "group and shuffle, orthogonal",
        rotations,
        lambda rows, columns: [
            (GroupAndShuffle(groups=max(rows, columns), orthogonal=True), "groups")
        ],
        lambda _width: [
            GroupAndShuffle(groups=4, orthogonal=True),
            GroupAndShuffle(groups=8, factors=3, orthogonal=True),
        ],
        smallest=2,
        exempt={
            "a member is projected onto itself": "rotations are not convex: the alternation may "
            "stop where turning two blocks over at once would help",
            "a projection is never worse than zero": "an orthogonal matrix cannot be small",
            "the scale of a matrix does not matter": "an orthogonal matrix has one size",
        },
        fits=8,
    ),
)
