"""CP of units' weights, folded into matrices or into tensors."""

from hypothesis import strategies as st

from models.structures import Cp, Structure
from models.structures.factorisation import balanced_modes
from tests.properties.family import Family, Law

BUILT = "the matrix is built once for a batch; a unit test counts a batch of one"
NO_BEST = (
    "alternating least squares may stop at a stationary point, and where columns are padded what "
    "is best has no closed form"
)
EXEMPT: dict[Law, str] = {"a FLOP counter sees the MACs": BUILT}


@st.composite
def cps(draw: st.DrawFn, columns: int, *, depth: int, dividing: bool) -> Structure:
    modes: list[int] = []
    side = columns
    for _ in range(depth - 1):
        sizes = [size for size in range(1, side + 1) if side % size == 0 or not dividing]
        modes.insert(0, draw(st.sampled_from(sizes)))
        side = -(-side // modes[0])
    found = Cp(terms=1, column_modes=(side, *modes))
    for _ in range(draw(st.integers(0, 2))):
        found = next(found.larger(rows=1, columns=columns), found)
    return found


def misfits(_rows: int, columns: int) -> list[tuple[Structure, str]]:
    return [
        (Cp(terms=1, column_modes=(1, columns + 1)), "column_modes"),
        (Cp(terms=1, column_modes=(10**12, 10**12)), "column_modes"),
        (Cp(terms=2, column_modes=(1, columns)), "terms"),
        (Cp(terms=10**12, column_modes=(1, columns)), "terms"),
    ]


FAMILIES = [
    Family(
        "CP of matrices",
        lambda _rows, columns: cps(columns, depth=2, dividing=True),
        misfits,
        lambda width: [Cp(terms=2, column_modes=balanced_modes(width, 2))],
        exempt=EXEMPT,
        fits=15,
    ),
    Family(
        "CP of tensors",
        lambda _rows, columns: cps(columns, depth=3, dividing=False),
        misfits,
        lambda width: [Cp(terms=3, column_modes=balanced_modes(width + 4, 3))],
        exempt=EXEMPT | {"a member is projected onto itself": NO_BEST},
        fits=5,
    ),
]
