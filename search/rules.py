"""What a user may demand of single layers, and the least that a layer then costs."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.cost import UNITS, Counted, Quantity, dense_cost, layer_weight
from models.frozen import Spec
from models.spec import LayerSpec
from models.structures import Dense, Structure
from models.structures.sizes import Kind, largest_within, saves

MenuKind = Literal["dense", Kind]
Fraction = Annotated[float, Field(gt=0, le=1)]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=100)]


class RuleRefused(ValueError):
    """A rule that can never work: the field to change, and a sentence that says how."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        self.sentence = sentence


class Rule(Spec):
    """What the layers whose name `match` fits may be: of several rules the first that fits holds.

    `structures` are the only ones admitted, where given (`dense` alone keeps a layer as it is);
    `at_most` is the largest share of the layer's own dense cost. Such a layer gets its structure
    from the allocation over the menu in every trial; training moves its numbers only.
    """

    match: Pattern
    structures: Annotated[tuple[MenuKind, ...], Field(min_length=1, max_length=40)] | None = None
    at_most: Fraction | None = None

    @model_validator(mode="after")
    def _demands_something(self) -> Self:
        if self.structures is None and self.at_most is None:
            raise ValueError(
                "a rule needs structures or at_most; to search a layer freely, no rule"
            )
        return self

    def kinds(self, otherwise: Sequence[Kind]) -> tuple[MenuKind, ...]:
        """Return what may stand on the menu of a layer under this rule."""
        return self.structures or ("dense", *otherwise)

    def limit(self, dense: int) -> int:
        """Return the most that a layer may cost that costs so much dense."""
        return int((self.at_most or 1.0) * dense + 1e-6)


class Layers(Spec):
    """Which layers are searched, by shell-style patterns; nothing included means the default.

    `rules` bind some of them; their cost counts as that of the others does.
    """

    include: Patterns = ()
    exclude: Patterns = ()
    rules: Annotated[tuple[Rule, ...], Field(max_length=100)] = ()


def rules_by_layer(
    rules: Sequence[Rule],
    layers: Sequence[LayerSpec],
    *,
    quantity: Quantity,
    otherwise: Sequence[Kind],
) -> dict[str, Rule]:
    """Return the rule of each searched layer that has one.

    Raises RuleRefused for a pattern that matches no searched layer, and for a rule that leaves one
    of them nothing.
    """
    for index, rule in enumerate(rules):
        if not any(fnmatchcase(layer.name, rule.match) for layer in layers):
            names = ", ".join(layer.name for layer in layers)
            raise RuleRefused(
                f"layers.rules[{index}].match",
                f"{rule.match!r} matches no searched layer; these are {names}",
            )
    _check_each_holds(rules, layers)
    found = {}
    for layer in layers:
        for index, rule in enumerate(rules):
            if fnmatchcase(layer.name, rule.match):
                if quantity != "latency":  # which is measured later
                    _check_leaves_something(index, rule, layer, quantity, otherwise)
                found[layer.name] = rule
                break
    return found


def _check_each_holds(rules: Sequence[Rule], layers: Sequence[LayerSpec]) -> None:
    """Refuse a rule that holds nowhere, for of several that match a layer the first one holds."""
    before: dict[str, int] = {}
    for index, rule in enumerate(rules):
        matched = [layer.name for layer in layers if fnmatchcase(layer.name, rule.match)]
        if all(name in before for name in matched):
            hiding = sorted({before[name] for name in matched})
            earlier = " and ".join(f"layers.rules[{one}] ({rules[one].match!r})" for one in hiding)
            raise RuleRefused(
                f"layers.rules[{index}].match",
                f"{rule.match!r} never holds: {earlier} comes first wherever it matches; put the "
                "narrower rule first",
            )
        before |= dict.fromkeys((name for name in matched if name not in before), index)


def least_costs(
    layers: Sequence[LayerSpec],
    rules: Mapping[str, Rule],
    quantity: Counted,
    structures: Sequence[Kind],
) -> dict[str, int]:
    """Return what each layer costs at least: the smallest size that its rule admits.

    A layer without a rule takes the smallest of the search's structures, but no less than rank 1.
    """
    least = {}
    for layer in layers:
        rule = rules.get(layer.name)
        rank_one = layer_weight(layer, quantity) * (layer.rows + layer.columns)
        if rule is not None:
            least[layer.name] = smallest_cost(layer, rule.kinds(structures), quantity) or rank_one
        elif "low rank" in structures:
            least[layer.name] = rank_one
        else:
            kinds: tuple[MenuKind, ...] = ("dense", *structures)
            least[layer.name] = max(rank_one, smallest_cost(layer, kinds, quantity) or 0)
    return least


def in_the_way(
    least: Mapping[str, int], rules: Mapping[str, Rule], structures: Sequence[Kind]
) -> str:
    """Say what makes the layers cost at least that much, to be followed by the sum."""
    dearest = sorted(rules or least, key=lambda name: -least[name])[:3]
    named = ", ".join(f"{name} at least {least[name]:,}" for name in dearest)
    if rules:
        free = "" if len(rules) == len(least) else " and with rank 1 or more in the others,"
        return f"under the rules ({named}){free} the {len(least)} eligible layers cost at least"
    if "low rank" in structures:
        return f"rank 1 in all {len(least)} eligible layers ({named}) costs"
    smallest = f"the smallest of {_quoted(structures)}"
    return f"{smallest} in all {len(least)} eligible layers ({named}) costs at least"


def smallest_cost(layer: LayerSpec, kinds: Sequence[MenuKind], quantity: Counted) -> int | None:
    """Return what the cheapest member of these kinds costs; None if none fits and saves a thing."""
    sides = (layer.rows, layer.columns)
    sizes = [size for kind in kinds if (size := _smallest_size(kind, *sides, quantity))]
    return layer_weight(layer, quantity) * min(sizes) if sizes else None


def smallest_member(kind: Kind, *, rows: int, columns: int) -> Structure | None:
    """Return the cheapest member of a kind, if any costs less than dense."""
    low, high, most = 1, 1, rows * columns - 1
    # From below: the tiles or rectangles of a large budget are many.
    while high < most and largest_within(kind, rows=rows, columns=columns, budget=high) is None:
        low, high = high + 1, min(2 * high, most)
    if most < 1 or largest_within(kind, rows=rows, columns=columns, budget=high) is None:
        return None
    while low < high:  # with more to spend, whatever fitted still does
        middle = (low + high) // 2
        if largest_within(kind, rows=rows, columns=columns, budget=middle) is None:
            low = middle + 1
        else:
            high = middle
    return largest_within(kind, rows=rows, columns=columns, budget=low)


@lru_cache(maxsize=4096)
def _smallest_size(kind: MenuKind, rows: int, columns: int, quantity: Counted) -> int | None:
    if kind == "dense":
        return Dense().parameter_count(rows=rows, columns=columns)
    if quantity == "macs" and saves(kind) != "macs":
        return None
    member = smallest_member(kind, rows=rows, columns=columns)
    if member is None:
        return None
    if quantity == "macs":
        return member.mac_count(rows=rows, columns=columns)
    return member.parameter_count(rows=rows, columns=columns)


def _quoted(kinds: Sequence[MenuKind]) -> str:
    """Name kinds, some of which have a comma in their name."""
    return ", ".join(map(repr, kinds))


def _smallest_in_words(layer: LayerSpec, kinds: Sequence[MenuKind], quantity: Counted) -> str:
    """Say what the smallest size of the kinds is."""
    sides = (layer.rows, layer.columns)
    size, kind = min(
        (size, kind) for kind in kinds if (size := _smallest_size(kind, *sides, quantity))
    )
    if kind == "dense":
        return kind
    member = smallest_member(kind, rows=layer.rows, columns=layer.columns)
    assert member is not None, f"it costs {size}"
    return member.in_words()


def _check_leaves_something(
    index: int, rule: Rule, layer: LayerSpec, quantity: Counted, otherwise: Sequence[Kind]
) -> None:
    kinds, dense = rule.kinds(otherwise), dense_cost(layer, quantity)
    least = smallest_cost(layer, kinds, quantity)
    where = f"{layer.name} ({layer.rows} x {layer.columns})"
    if least is None:
        raise RuleRefused(
            f"layers.rules[{index}].structures",
            f"{_quoted(kinds)} saves nothing in {where}; name other structures, or dense",
        )
    if least > rule.limit(dense):
        raise RuleRefused(
            f"layers.rules[{index}].at_most",
            f"{rule.at_most} leaves {where} nothing: the smallest that {_quoted(kinds)} admits "
            f"({_smallest_in_words(layer, kinds, quantity)}) costs {least:,} of its {dense:,} "
            f"{UNITS[quantity]} dense; admit a share of at least "
            f"{-(-least * 10_000 // dense) / 10_000:.4f}, or other structures",
        )
