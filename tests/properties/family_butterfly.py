"""What butterflies look like to the laws."""

from hypothesis import strategies as st

from models.structures import Butterfly, ButterflyGadget, Structure
from models.structures.butterfly import padded_side
from tests.properties.family import Family

MERGED = "merged factors multiply more than the mixes that are counted, in less time"


def butterflies(rows: int, columns: int) -> st.SearchStrategy[Structure]:
    return st.builds(
        Butterfly,
        blocks=st.integers(1, min(3, padded_side(rows, columns))),
        numbers=st.sampled_from(["real", "complex"]),
        strides=st.sampled_from(["increasing", "decreasing"]),
        bit_reversal=st.booleans(),
    )


def gadgets(rows: int, columns: int) -> st.SearchStrategy[Structure]:
    return st.builds(
        ButterflyGadget,
        core_rows=st.integers(1, rows),
        core_columns=st.integers(1, columns),
        seed=st.integers(0, 2**31),
    )


FAMILIES = (
    Family(
        "butterfly",
        lambda _rows, _columns: st.builds(
            Butterfly,
            strides=st.sampled_from(["increasing", "decreasing"]),
            bit_reversal=st.booleans(),
        ),
        lambda rows, columns: [(Butterfly(blocks=padded_side(rows, columns) + 1), "blocks")],
        lambda _width: [Butterfly(bit_reversal=True), Butterfly(strides="decreasing")],
        exempt={"a FLOP counter sees the MACs": MERGED},
        fits=10,
    ),
    Family(
        "butterfly products",
        butterflies,
        lambda _rows, _columns: [(Butterfly(blocks=10**12), "blocks")],
        lambda _width: [
            Butterfly(blocks=2, numbers="complex", strides="decreasing"),
            Butterfly(blocks=3, bit_reversal=True),
        ],
        exempt={
            "a member is projected onto itself": "the real part of complex factors, and a product "
            "of several butterflies, have no closed form: descent may stop at a stationary point",
            "a FLOP counter sees the MACs": MERGED,
        },
        fits=3,
    ),
)

GADGET = Family(
    "butterfly gadget",
    gadgets,
    lambda rows, columns: [
        (ButterflyGadget(core_rows=rows + 1, core_columns=columns), "core_rows"),
        (ButterflyGadget(core_rows=rows, core_columns=10**12), "core_columns"),
        (ButterflyGadget(core_rows=1, core_columns=1, seed=2**63), "seed"),
    ],
    lambda width: [
        ButterflyGadget(core_rows=width // 8, core_columns=width // 8),
        ButterflyGadget(core_rows=width // 5, core_columns=width // 4, seed=7),
    ],
    exempt={
        "a member is projected onto itself": "truncated butterflies have no closed form: descent "
        "may stop at a stationary point",
        "a FLOP counter sees the MACs": MERGED,
    },
    fits=3,
)
