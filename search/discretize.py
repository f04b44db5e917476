"""From relaxed layers to hard ones: exact structures with the same values."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.structured.base import StructuredLinear
from models.structured.build import empty_layer
from models.structured.dense import DenseLinear
from models.structured.gblr import GblrLinear
from models.structured.low_rank import LowRankLinear
from models.structured.sums import SumLinear
from models.structures import Dense, Gblr, LowRank, Rectangle, Structure
from search.relaxation import RelaxedLinear, inside

Factors = tuple[Tensor, Tensor]
Side = tuple[int, int]  # start and count of a rectangle's rows or columns, cyclic


@torch.no_grad()
def bake(layer: RelaxedLinear) -> None:
    """Set to zero what lies behind the masks: the layer's product does not change."""
    rows, columns = layer.rectangles()
    row_mask = inside(rows, layer.layer.rows).repeat_interleave(layer.group, 0)
    column_mask = inside(columns, layer.layer.columns).repeat_interleave(layer.group, 0)
    layer.row_factors.mul_(row_mask.T)
    layer.column_factors.mul_(column_mask)


def merged(layer: RelaxedLinear) -> dict[tuple[Side, Side], tuple[int, ...]]:
    """Return the distinct rectangles of a layer, each with the groups that lie on it."""
    found: dict[tuple[Side, Side], tuple[int, ...]] = {}
    sides = (side.tolist() for side in layer.rectangles())
    for index, (rows, columns) in enumerate(zip(*sides, strict=True)):
        if rows[1] and columns[1]:
            key = (canonical(rows, layer.layer.rows), canonical(columns, layer.layer.columns))
            found[key] = (*found.get(key, ()), index)
    return found


def merged_size(places: Mapping[tuple[Side, Side], Sequence[int]], group: int) -> int:
    """Count the numbers that a layer holds once equal rectangles are merged."""
    return sum(
        min(height * width, len(groups) * group * (height + width))
        for ((_, height), (_, width)), groups in places.items()
    )


def hard_size(layer: RelaxedLinear) -> int:
    """Count the numbers of the hard layer; one that is dense has nothing beside it."""
    places = merged(layer)
    size = merged_size(places, layer.group)
    area = layer.layer.rows * layer.layer.columns
    return size if len(places) == 1 and size == area else size + layer.beside_size


@torch.no_grad()
def harden(layer: RelaxedLinear) -> StructuredLinear:
    """Return the hard layer: groups on one rectangle are merged, dead ones are gone.

    With a live alternative it is a sum, or the alternative itself where no rectangle is left.
    """
    beside = layer.beside
    if beside is not None and not merged(layer):
        alone = empty_layer(
            beside.spec,
            rows=beside.rows,
            columns=beside.columns,
            bias=layer.bias is not None,
            dtype=layer.row_factors.dtype,
        )
        alone.load_state_dict(beside.state_dict(), strict=False)
        alone.set_bias(layer.bias)
        return alone
    terms = _harden_rectangles(layer, bias=layer.bias if beside is None else None)
    if beside is None:
        return terms
    if isinstance(terms.spec, Dense):
        whole = terms.to_dense() + beside.to_dense()
        return DenseLinear.from_dense(whole, terms.spec, bias=layer.bias)
    return SumLinear.of([terms, beside], bias=layer.bias)


def hard_structure(layer: RelaxedLinear) -> Structure:
    """Return what the terms of a layer amount to, without anything beside them."""
    rectangles = tuple(
        Rectangle(
            row_start=rows[0],
            row_count=rows[1],
            column_start=columns[0],
            column_count=columns[1],
            rank=min(len(groups) * layer.group, rows[1], columns[1]),
        )
        for (rows, columns), groups in merged(layer).items()
    )
    return simplest(rectangles, rows=layer.layer.rows, columns=layer.layer.columns)


def _harden_rectangles(layer: RelaxedLinear, *, bias: Tensor | None) -> StructuredLinear:
    height, width = layer.layer.rows, layer.layer.columns
    factors = []
    for (rows, columns), groups in merged(layer).items():
        terms = (torch.tensor(groups)[:, None] * layer.group + torch.arange(layer.group)).flatten()
        factors.append(
            (
                layer.row_factors[positions(rows, height)][:, terms],
                layer.column_factors[terms][:, positions(columns, width)],
            )
        )
    return _layer(hard_structure(layer), factors, rows=height, columns=width, bias=bias)


def _layer(
    structure: Structure,
    factors: Sequence[Factors],
    *,
    rows: int,
    columns: int,
    bias: Tensor | None,
) -> StructuredLinear:
    match structure:
        case Dense():
            ((row_factor, column_factor),) = factors
            return DenseLinear.from_dense(row_factor @ column_factor, structure, bias=bias)
        case LowRank():
            ((row_factor, column_factor),) = factors
            return LowRankLinear.from_factors(row_factor, column_factor, bias=bias)
        case Gblr():
            return GblrLinear.from_factors(
                structure, factors, rows=rows, columns=columns, bias=bias
            )
        case _:
            raise AssertionError(structure.kind)


def simplest(rectangles: tuple[Rectangle, ...], *, rows: int, columns: int) -> Structure:
    """Return the plain structure that the rectangles amount to, where they do."""
    if len(rectangles) == 1:
        (only,) = rectangles
        if (only.row_count, only.column_count) == (rows, columns):
            return Dense() if only.is_tile else LowRank(rank=only.rank)
    return Gblr(rectangles=rectangles)


def canonical(side: Sequence[int], length: int) -> Side:
    """Return (start, count), which begins at 0 where it covers the whole circle."""
    start, count = side
    return (0, length) if count == length else (start, count)


def positions(side: Side, length: int) -> Tensor:
    """Return the indices that (start, count) covers, in order."""
    start, count = side
    return (start + torch.arange(count)) % length
