"""What a family of structures tells the laws of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import strategies as st
from torch import Tensor

from models.structured.error_curve import ErrorCurve
from models.structures import Structure

# The laws from which a family may be exempt, each with its mathematical reason.
Law = Literal[
    "a member is projected onto itself",
    "a projection is never worse than zero",
    "the scale of a matrix does not matter",
    "a FLOP counter sees the MACs",
    "the variance is kept",
    "one step moves features as a dense layer's",
]


@dataclass(frozen=True)
class Family:
    """One structure: what it may look like, what does not fit, and which laws cannot hold for it.

    `structures` draws one that fits `rows x columns`, both at least `smallest`. `misfits` gives
    structures that do not fit, each with the argument to blame. `at_width` gives typical members of
    a square matrix, whose first stands for the family where one is enough. `curve` gives all nested
    sizes of a closed form at once. `padded`, where it is given, tells the only members that need
    not be projected onto themselves.
    """

    name: str
    structures: Callable[[int, int], st.SearchStrategy[Structure]]
    misfits: Callable[[int, int], Sequence[tuple[Structure, str]]]
    at_width: Callable[[int], Sequence[Structure]]
    smallest: int = 1
    exempt: Mapping[Law, str] = field(default_factory=dict)
    padded: Callable[[Structure, int, int], bool] | None = None
    bounded: Callable[[Structure], bool] | None = None
    curve: Callable[[Tensor, Tensor | None], ErrorCurve] | None = None
    fits: int = 25  # examples of a law that projects: fewer where a projection takes long

    def __str__(self) -> str:
        return self.name


def skip_exempt(family: Family, law: Law) -> None:
    if law in family.exempt:
        pytest.skip(f"{family.name}: {family.exempt[law]}")
