"""What no size of any structure may be: refused by its name and value, or counted at once."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, TypeVar

import pytest
import torch

from models.cost import dense_cost, layer_cost, layer_weight, smallest_step
from models.frozen import Spec
from models.spec import LayerSpec
from models.structured import TruncatedButterfly
from models.structured.build import empty_layer
from models.structured.curves import error_curve
from models.structured.low_rank import factors
from models.structures import Einsum, LowRank
from models.structures.base import MatrixSpec, StructureSpec
from models.structures.btt_moe import BttMoe
from models.structures.convolution import Convolution, ConvolutionSpec, SparseConvolution
from models.structures.factorisation import balanced_modes
from models.structures.sizes import KINDS, Kind, cost, grid, largest_within, saves, sums_within
from tests.properties.families import FAMILIES

SIDE = 16
HUGE = 10**12
WRONG = (0, -1, True, "3", 2.5, math.nan, math.inf, HUGE, SIDE + 1, None)
NO_SIDES: tuple[Any, ...] = (0, -1, True, "3", 2.5, math.nan, math.inf, None)
NO_SHARES: tuple[Any, ...] = (0, -1, True, "0.3", math.nan, math.inf, 1.1, None)

S = TypeVar("S", bound=Spec)
TRUTHS = ("orthogonal", "bit_reversal")  # the fields that are true or false

Path = tuple[str | int, ...]

MEMBERS: dict[str, MatrixSpec] = {
    f"{family}, {index}": member
    for family in FAMILIES
    for index, member in enumerate(family.at_width(SIDE))
} | {"a mixture": BttMoe(input_blocks=2, output_blocks=2, experts=4, active=2)}
CONVOLUTIONS = {
    "structured": Convolution(in_channels=4, out_channels=2, kernel=(3, 3), groups=2),
    "sparse": SparseConvolution(
        in_channels=4, out_channels=2, kernel=(3, 3), groups=2, taps=((0, 0), (1, 1))
    ),
}
every_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS.keys())
every_convolution = pytest.mark.parametrize("spec", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
every_kind = pytest.mark.parametrize("kind", KINDS)


def numbers(value: object, path: Path = ()) -> Iterator[Path]:
    """Where in a dumped spec its numbers are, truth values among them."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from numbers(inner, (*path, name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*path, index))
    elif isinstance(value, int | float):
        yield path


def exchanged(value: Any, path: Path, new: object) -> Any:
    """The same with one number exchanged."""
    if not path:
        return new
    first, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        return {**value, first: exchanged(value[first], rest, new)}
    return tuple(
        exchanged(inner, rest, new) if index == first else inner
        for index, inner in enumerate(value)
    )


def attacks(dumped: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, object]]:
    """Yield a spec's fields with one number exchanged for a wrong one, its name, and that one."""
    for path in numbers(dumped):
        field = next(key for key in reversed(path) if isinstance(key, str))
        for wrong in WRONG:
            yield exchanged(dumped, path, wrong), field, wrong


def attempt(kind: type[S], fields: Mapping[str, Any]) -> tuple[S | None, str]:
    """The spec that fits a matrix or an image of our side, or why there is none."""
    try:
        found = kind.model_validate(fields)
        if isinstance(found, ConvolutionSpec):
            found.mac_count(height=SIDE, width=SIDE)
        if isinstance(found, MatrixSpec):
            found.check_fits(rows=SIDE, columns=SIDE)
    except ValueError as error:
        return None, str(error)
    return found, ""


def is_told(refusal: str, field: str, value: object) -> bool:
    """Whether a refusal says what is wrong: the field as a word, and the value as it was given."""
    return bool(re.search(rf"\b{field}\b", refusal)) and str(value) in refusal


def is_counted(spec: MatrixSpec, *, rows: int, columns: int) -> None:
    """Ask for all that arithmetic knows; what is a picture or a next size only has to begin."""
    for count in (spec.parameter_count, spec.mac_count):
        found = count(rows=rows, columns=columns)
        assert type(found) is int
        assert found >= 0
    assert spec.in_words()
    if isinstance(spec, StructureSpec):
        next(iter(spec.larger(rows=rows, columns=columns)), None)
        next(iter(spec.patches(rows=rows, columns=columns)), None)


@every_member
def test_a_wrong_number_is_refused_by_its_name_or_counted(member: MatrixSpec) -> None:
    for fields, field, wrong in attacks(member.model_dump()):
        found, refusal = attempt(type(member), fields)
        if found is None:
            assert is_told(refusal, field, wrong), refusal
        else:
            assert not isinstance(wrong, str)
            assert (field in TRUTHS) == (wrong is True)
            is_counted(found, rows=SIDE, columns=SIDE)


@every_convolution
def test_a_convolution_is_refused_by_what_is_wrong_or_counted(spec: ConvolutionSpec) -> None:
    for fields, field, wrong in attacks(spec.model_dump()):
        found, refusal = attempt(type(spec), fields)
        if found is None:
            assert is_told(refusal, field, wrong), refusal
        else:
            assert wrong is not True
            assert found.parameter_count() >= 0
            assert found.mac_count(height=SIDE, width=SIDE) >= 0
    for wrong in NO_SIDES:
        with pytest.raises(ValueError, match=f"height is {wrong!r}, but an image admits"):
            spec.mac_count(height=wrong, width=SIDE)
        with pytest.raises(ValueError, match=f"width is {wrong!r}, but an image admits"):
            spec.mac_count(height=SIDE, width=wrong)


@every_member
def test_nothing_is_said_of_a_matrix_without_whole_sides(member: MatrixSpec) -> None:
    asked: list[Callable[..., object]] = [
        member.check_fits,
        member.parameter_count,
        member.mac_count,
    ]
    if isinstance(member, StructureSpec):
        asked += [member.larger, member.patches]
    for wrong in NO_SIDES:
        for ask in asked:
            with pytest.raises(ValueError, match=f"rows is {wrong!r}, but a matrix admits"):
                ask(rows=wrong, columns=SIDE)
            with pytest.raises(ValueError, match=f"columns is {wrong!r}, but a matrix admits"):
                ask(rows=SIDE, columns=wrong)


@every_member
def test_nothing_is_said_of_a_matrix_that_does_not_fit(member: MatrixSpec) -> None:
    for rows, columns in product((1, SIDE, HUGE, 10**400), repeat=2):
        try:
            member.check_fits(rows=rows, columns=columns)
        except ValueError:
            for ask in (member.parameter_count, member.mac_count):
                with pytest.raises(ValueError, match=r" is .+, but .+ admits? "):
                    ask(rows=rows, columns=columns)
        else:
            is_counted(member, rows=rows, columns=columns)


@every_kind
def test_a_grid_of_no_matrix_or_of_no_shares_is_refused(kind: Kind) -> None:
    for wrong in NO_SIDES:
        for ask in (grid, partial(largest_within, budget=SIDE)):
            with pytest.raises(ValueError, match=f"rows is {wrong!r}, but a matrix admits"):
                ask(kind, rows=wrong, columns=SIDE)
            with pytest.raises(ValueError, match=f"columns is {wrong!r}, but a matrix admits"):
                ask(kind, rows=SIDE, columns=wrong)
    for rows, columns in ((HUGE, SIDE), (SIDE, HUGE)):
        for ask in (grid, partial(largest_within, budget=SIDE)):
            with pytest.raises(ValueError, match=f"is {HUGE}, but a grid of sizes admits 1 to"):
                ask(kind, rows=rows, columns=columns)
    weight = torch.eye(SIDE)
    for wrong in NO_SHARES:
        message = re.escape(f"a share of shares is {wrong!r}, but a dense matrix admits numbers")
        for shares in ((wrong,), [0.5, wrong]):
            with pytest.raises(ValueError, match=message):
                grid(kind, rows=SIDE, columns=SIDE, shares=shares)
            with pytest.raises(ValueError, match=message):
                error_curve(kind, weight, shares=shares)
    none: Any
    for none in (0.5, 1, math.nan, "0.5", (), [], None):
        with pytest.raises(ValueError, match=re.escape(f"shares is {none!r}, but a curve admits")):
            error_curve(kind, weight, shares=none)


@every_kind
def test_a_budget_is_refused_or_kept(kind: Kind) -> None:
    for wrong in NO_SIDES[1:]:
        with pytest.raises(ValueError, match=f"budget is {wrong!r}, but a size admits"):
            largest_within(kind, rows=SIDE, columns=SIDE, budget=wrong)
    for budget in (0, 1, SIDE, HUGE):
        found = largest_within(kind, rows=SIDE, columns=SIDE, budget=budget)
        if found is not None:
            assert cost(kind, found, rows=SIDE, columns=SIDE) <= budget


@pytest.mark.parametrize("kind", ["lowrank", "Monarch", "", None, 3, [], LowRank(rank=1)])
def test_what_is_no_kind_is_refused_by_what_it_may_mean(kind: Any) -> None:
    sides = {"rows": SIDE, "columns": SIDE}
    asked: list[Callable[[], object]] = [
        lambda: error_curve(kind, torch.eye(SIDE)),
        lambda: grid(kind, rows=SIDE, columns=SIDE),
        lambda: largest_within(kind, **sides, budget=0),
        lambda: next(sums_within(kind, **sides, budget=SIDE)),
        lambda: saves(kind),
        lambda: cost(kind, LowRank(rank=1), **sides),
    ]
    for ask in asked:
        with pytest.raises(ValueError, match=re.escape(f"kind is {kind!r}, but the choices are")):
            ask()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lowrank", "low rank"),
        ("LOW RANK", "low rank"),
        ("BTT", "BTT, 4 x 4"),
        ("svdp", "SVDP"),
        ("monarch", "Monarch, rank 1"),
    ],
)
def test_a_kind_that_is_misspelt_is_guessed(wrong: Any, meant: str) -> None:
    message = f"kind is {wrong!r}, but the choices are ({meant!r}, perhaps) 'low rank', "
    with pytest.raises(ValueError, match=re.escape(message)):
        saves(wrong)


@pytest.mark.parametrize("wrong", ["flops", None])
def test_what_is_neither_macs_nor_parameters_has_no_cost(wrong: Any) -> None:
    layer = LayerSpec(name="layer", rows=SIDE, columns=SIDE)
    for ask in (layer_cost, dense_cost, layer_weight, smallest_step):
        with pytest.raises(ValueError, match=rf"quantity is {wrong!r}, but .* 'macs', 'param"):
            ask(layer, wrong)


@pytest.mark.parametrize("wrong", NO_SIDES)
def test_what_is_no_size_makes_no_layer(wrong: Any) -> None:
    asked: list[tuple[str, Callable[[], object]]] = [
        ("rows", lambda: empty_layer(LowRank(rank=1), rows=wrong, columns=SIDE)),
        ("columns", lambda: empty_layer(LowRank(rank=1), rows=SIDE, columns=wrong)),
        ("rank", lambda: factors(torch.eye(SIDE), wrong)),
        ("numbers", lambda: TruncatedButterfly(numbers=wrong, kept=1)),
        ("kept", lambda: TruncatedButterfly(numbers=SIDE, kept=wrong)),
        ("number", lambda: balanced_modes(wrong, 2)),
        ("parts", lambda: balanced_modes(SIDE, wrong)),
        ("point", lambda: Einsum.at(wrong)),
    ]
    for name, ask in asked:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - read by `is_told`
            ask()
        assert is_told(str(caught.value), name, wrong)
