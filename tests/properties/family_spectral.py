"""Layers with a spectrum between orthonormal frames: SVDP and STTP."""

from math import prod

from hypothesis import strategies as st

from models.structured import svdp
from models.structures import Structure, Sttp, Svdp
from models.structures.frames import Spectrum
from models.structures.sttp import most_inner_rank
from tests.properties.family import Family, Law

ONCE = "frames are made of their reflections once for all inputs, by products that are seen, too"
CLIPPED = "singular values above 1 are none of a bounded spectrum"
NORM = "a matrix of unit spectrum has the norm sqrt(rank), far from small ones: zero is no member"
CROPPED = "where digits are padded up, what is cropped is free, and no closed form completes it"
ISOMETRY = "an isometry of `rank` dimensions passes rank / rows of the variance on"
STORED: list[Spectrum] = ["free", "bounded"]


@st.composite
def modes(draw: st.DrawFn, side: int) -> tuple[int, ...]:
    """Digits whose product is at least the side, and less than twice that."""
    found: list[int] = []
    rest = side
    while rest > 1 and len(found) < 3 and draw(st.booleans()):
        digit = draw(st.integers(1, rest))
        if 2 * side > (prod(found) * digit * -(-rest // digit)):
            found.append(digit)
            rest = -(-rest // digit)
    return (*found, rest)


@st.composite
def trains(draw: st.DrawFn, rows: int, columns: int, spectra: list[Spectrum]) -> Structure:
    row_modes, column_modes = draw(modes(rows)), draw(modes(columns))
    high = min(rows, columns)
    most = most_inner_rank(high, row_modes, column_modes)
    inner = draw(st.integers(1, min(6, most)))
    for digits in (row_modes, column_modes):
        if len(digits) > 1:
            high = min(high, inner * digits[-1])
    rank = draw(st.integers(1, high))
    return Sttp(
        rank=rank,
        inner_rank=min(inner, most_inner_rank(rank, row_modes, column_modes)),
        row_modes=row_modes,
        column_modes=column_modes,
        spectrum=draw(st.sampled_from(spectra)),
    )


def padded(structure: Structure, rows: int, columns: int) -> bool:
    """Whether its digits name rows or columns that the matrix does not have."""
    assert isinstance(structure, Sttp)
    return (prod(structure.row_modes), prod(structure.column_modes)) != (rows, columns)


def bounded(structure: Structure) -> bool:
    """Whether it clips singular values."""
    assert isinstance(structure, Sttp | Svdp)
    return structure.spectrum == "bounded"


def ranks(rows: int, columns: int, spectra: list[Spectrum]) -> st.SearchStrategy[Structure]:
    return st.builds(
        Svdp, rank=st.integers(1, min(rows, columns)), spectrum=st.sampled_from(spectra)
    )


def digits_at(width: int) -> tuple[int, ...]:
    """Powers of two."""
    return (4, 4, width // 16) if width >= 64 else (4, width // 4)


def train_at(width: int, rank: int, spectrum: Spectrum = "free") -> Sttp:
    digits = digits_at(width)
    inner_rank = min(8, most_inner_rank(rank, digits))
    return Sttp(
        rank=rank,
        inner_rank=inner_rank,
        row_modes=digits,
        column_modes=digits,
        spectrum=spectrum,
    )


def misfits(rows: int, columns: int) -> list[tuple[Structure, str]]:
    fits = {"rank": 1, "inner_rank": 1, "row_modes": (rows,), "column_modes": (columns,)}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"row_modes": (rows, 2)}, "row_modes"),
        ({"column_modes": (columns + 1, 2)}, "column_modes"),
        ({"rank": min(rows, columns) + 1}, "rank"),
        ({"rank": 2, "row_modes": (rows, 1)}, "rank"),
        ({"inner_rank": 2}, "inner_rank"),
        ({"inner_rank": 2, "row_modes": (rows, 1)}, "inner_rank"),
    ]
    return [(Sttp.model_validate(fits | change), argument) for change, argument in wrong]


def family(
    name: str,
    *,
    train: bool,
    spectra: list[Spectrum],
    exempt: dict[Law, str],
) -> Family:
    unit = "unit" in spectra
    return Family(
        name,
        lambda rows, columns: (trains if train else ranks)(rows, columns, spectra),
        lambda rows, columns: (
            misfits(rows, columns)
            if train
            else [(Svdp(rank=min(rows, columns) + 1, spectrum=spectra[0]), "rank")]
        ),
        lambda width: (
            [train_at(width, rank, spectra[0]) for rank in (min(8, width // 2), 4)]
            if train
            else [Svdp(rank=width if unit else max(1, width // 4), spectrum=spectra[0])]
        ),
        exempt=exempt,
        padded=padded if train else None,
        bounded=None if unit else bounded,
        curve=None if train or unit else svdp.error_curve,
        fits=10,
    )


FAMILIES = (
    family(
        "spectral tensor train",
        train=True,
        spectra=STORED,
        exempt={
            "a FLOP counter sees the MACs": ONCE,
            "a member is projected onto itself": CROPPED,
            "the scale of a matrix does not matter": CLIPPED,
        },
    ),
    family(
        "spectral tensor train, unit spectrum",
        train=True,
        spectra=["unit"],
        exempt={
            "a FLOP counter sees the MACs": ONCE,
            "a member is projected onto itself": CROPPED,
            "a projection is never worse than zero": NORM,
            "the scale of a matrix does not matter": NORM,
            "the variance is kept": ISOMETRY,
            "one step moves features as a dense layer's": f"{ISOMETRY}, and of each step",
        },
    ),
    family(
        "SVDP",
        train=False,
        spectra=STORED,
        exempt={
            "a FLOP counter sees the MACs": ONCE,
            "the scale of a matrix does not matter": CLIPPED,
        },
    ),
    family(
        "SVDP, unit spectrum",
        train=False,
        spectra=["unit"],
        exempt={
            "a FLOP counter sees the MACs": ONCE,
            "a projection is never worse than zero": NORM,
            "the scale of a matrix does not matter": NORM,
        },
    ),
)
