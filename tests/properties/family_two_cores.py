"""Kronecker products and the einsum family, where sizes divide and where they are padded up."""

from hypothesis import strategies as st
from torch import Tensor

from models.structured import einsum, kronecker
from models.structured.error_curve import ErrorCurve
from models.structures import Einsum, Kronecker, Structure
from models.structures.einsum import NAMED_POINTS, PointName
from models.structures.factorisation import balanced_modes
from tests.properties.family import Family

NO_CLOSED_FORM = (
    "what the padding of a block holds is free, and which values leave the least rank has no "
    "closed form"
)
SHARED = (
    "a number that works in many places moves by the sum of their wishes, which at random inputs "
    "hardly agree"
)


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


@st.composite
def kroneckers(draw: st.DrawFn, rows: int, columns: int, *, dividing: bool) -> Structure:
    tall = st.sampled_from(divisors(rows)) if dividing else st.integers(1, rows)
    wide = st.sampled_from(divisors(columns)) if dividing else st.integers(1, columns)
    block = {"block_rows": draw(tall), "block_columns": draw(wide)}
    most = Kronecker(terms=1, **block).sizes(rows=rows, columns=columns).most_terms
    return Kronecker(terms=draw(st.integers(1, most)), **block)


def kronecker_misfits(rows: int, columns: int) -> list[tuple[Structure, str]]:
    return [
        (Kronecker(terms=1, block_rows=rows + 1, block_columns=1), "block_rows"),
        (Kronecker(terms=1, block_rows=1, block_columns=columns + 1), "block_columns"),
        (Kronecker(terms=2, block_rows=rows, block_columns=columns), "terms"),
        (Kronecker(terms=10**12, block_rows=1, block_columns=1), "terms"),
    ]


def kronecker_curve(weight: Tensor, second_moment: Tensor | None) -> ErrorCurve:
    tall, wide = (balanced_modes(side, 2)[1] for side in weight.shape)
    # Only where nothing is padded is the curve exact.
    block_rows = tall if weight.shape[0] % tall == 0 else weight.shape[0]
    block_columns = wide if weight.shape[1] % wide == 0 else weight.shape[1]
    return kronecker.error_curve(
        weight, second_moment, block_rows=block_rows, block_columns=block_columns
    )


@st.composite
def shares(draw: st.DrawFn) -> tuple[float, float, float]:
    cuts = st.sampled_from([0, 0.25, 0.3, 0.5, 0.75, 1])
    first, second = sorted([draw(cuts), draw(cuts)])
    return (first, second - first, 1 - second)


@st.composite
def einsums(draw: st.DrawFn, rows: int, columns: int) -> Structure:
    if draw(st.booleans()):
        found = Einsum.at(draw(st.sampled_from(list(NAMED_POINTS))))
    else:
        (alpha, beta, gamma), (delta, epsilon, phi) = draw(shares()), draw(shares())
        found = Einsum(alpha=alpha, beta=beta, gamma=gamma, delta=delta, epsilon=epsilon, phi=phi)
    rho = found.most_rho * draw(st.sampled_from([0, 0.5, 1]))
    return found.model_copy(update={"rho": rho})


def whole_point(rows: int, columns: int) -> st.SearchStrategy[Structure]:
    """Points that divide every matrix."""
    names: list[PointName] = ["dense", "low rank"]
    points = st.sampled_from(names)
    return points.flatmap(
        lambda name: st.sampled_from([0, 0.5, Einsum.at(name).most_rho]).map(
            lambda rho: Einsum.at(name, rho=min(rho, Einsum.at(name).most_rho))
        )
    )


FAMILIES = [
    Family(
        "Kronecker",
        lambda rows, columns: kroneckers(rows, columns, dividing=True),
        kronecker_misfits,
        lambda width: [
            Kronecker(terms=terms, block_rows=16, block_columns=width // columns)
            for terms, columns in ((3, 16), (1, 16), (2, 8))
        ],
        exempt={"one step moves features as a dense layer's": SHARED},
        curve=kronecker_curve,
    ),
    Family(
        "Kronecker, padded",
        lambda rows, columns: kroneckers(rows, columns, dividing=False),
        kronecker_misfits,
        lambda width: [Kronecker(terms=2, block_rows=7, block_columns=11)],
        exempt={
            "a member is projected onto itself": NO_CLOSED_FORM,
            "one step moves features as a dense layer's": SHARED,
        },
    ),
    Family(
        "einsum",
        whole_point,
        lambda _rows, _columns: [],
        lambda _width: [
            Einsum.at("Monarch"),
            Einsum.at("BTT", rho=0.25),
            Einsum.at("low rank", rho=0.5),
            Einsum.at("dense"),
        ],
        curve=lambda weight, moment: einsum.error_curve(
            weight, moment, structure=Einsum.at("low rank")
        ),
    ),
    Family(
        "einsum, padded",
        einsums,
        lambda _rows, _columns: [],
        lambda _width: [
            Einsum(alpha=0.3, beta=0.3, gamma=0.4, delta=0.4, epsilon=0.3, phi=0.3, rho=0.2),
            Einsum.at("tensor train", rho=0.3),
            Einsum.at("Kronecker"),
        ],
        exempt={"one step moves features as a dense layer's": SHARED},
    ),
]
