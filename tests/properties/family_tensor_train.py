"""Tensor trains, where modes divide the sides and where they are padded up."""

from hypothesis import strategies as st

from models.structures import Structure, TensorTrain
from models.structures.factorisation import balanced_modes
from tests.properties.family import Family

PADDED = "what the padding holds is free, and which values leave the least ranks has no closed form"
SHARED = (
    "a number that works in many places moves by the sum of their wishes, which at random inputs "
    "hardly agree"
)


@st.composite
def modes(draw: st.DrawFn, side: int, count: int, *, dividing: bool) -> tuple[int, ...]:
    found: list[int] = []
    for _ in range(count - 1):
        sizes = [size for size in range(1, side + 1) if side % size == 0 or not dividing]
        found.insert(0, draw(st.sampled_from(sizes)))
        side = -(-side // found[0])
    return (side, *found)


@st.composite
def trains(draw: st.DrawFn, rows: int, columns: int, *, dividing: bool) -> Structure:
    count = draw(st.integers(2, 4))
    found = TensorTrain(
        row_modes=draw(modes(rows, count, dividing=dividing)),
        column_modes=draw(modes(columns, count, dividing=dividing)),
        ranks=(1,) * (count - 1),
    )
    for _ in range(draw(st.integers(0, 4))):
        if more := list(found.larger(rows=rows, columns=columns)):
            found = draw(st.sampled_from(more))
    return found


def misfits(rows: int, columns: int) -> list[tuple[Structure, str]]:
    fitting = {"row_modes": (rows, 1), "column_modes": (1, columns), "ranks": (1,)}
    wrong = [
        ("row_modes", (rows + 1, 1)),
        ("column_modes", (1, columns - 1 or 2)),
        ("column_modes", (10**12, 10**12)),
        ("ranks", (min(rows, columns) + 1,)),
        ("ranks", (10**12,)),
    ]
    return [(TensorTrain.model_validate(fitting | {name: value}), name) for name, value in wrong]


def square(width: int, count: int, rank: int, *, extra: int = 0) -> TensorTrain:
    sizes = balanced_modes(width + extra, count)
    return TensorTrain(row_modes=sizes, column_modes=sizes, ranks=(rank,) * (count - 1))


FAMILIES = [
    Family(
        "tensor train",
        lambda rows, columns: trains(rows, columns, dividing=True),
        misfits,
        lambda width: [square(width, 3, 4), square(width, 2, 8), square(width, 3, 2)],
        exempt={"one step moves features as a dense layer's": SHARED},
        fits=15,
    ),
    Family(
        "tensor train, padded",
        lambda rows, columns: trains(rows, columns, dividing=False),
        misfits,
        lambda width: [square(width, 2, 4, extra=3)],
        exempt={
            "a member is projected onto itself": PADDED,
            "one step moves features as a dense layer's": SHARED,
        },
        fits=8,
    ),
]
