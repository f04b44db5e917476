"""From relaxed layers to hard ones: exact structures with the same values."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.structured.base import StructuredLinear
from models.structured.dense import DenseLinear
from models.structured.gblr import GblrLinear
from models.structured.low_rank import LowRankLinear
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


@torch.no_grad()
def harden(layer: RelaxedLinear) -> StructuredLinear:
    """Return the hard layer: groups on one rectangle are merged, dead ones are gone."""
    height, width = layer.layer.rows, layer.layer.columns
    factors, rectangles = [], []
    for (rows, columns), groups in merged(layer).items():
        terms = (torch.tensor(groups)[:, None] * layer.group + torch.arange(layer.group)).flatten()
        factors.append(
            (
                layer.row_factors[positions(rows, height)][:, terms],
                layer.column_factors[terms][:, positions(columns, width)],
            )
        )
        rectangles.append(
            Rectangle(
                row_start=rows[0],
                row_count=rows[1],
                column_start=columns[0],
                column_count=columns[1],
                rank=min(len(terms), rows[1], columns[1]),
            )
        )
    structure = simplest(tuple(rectangles), rows=height, columns=width)
    return _layer(structure, factors, layer)


def _layer(
    structure: Structure, factors: Sequence[Factors], layer: RelaxedLinear
) -> StructuredLinear:
    rows, columns = layer.layer.rows, layer.layer.columns
    match structure:
        case Dense():
            ((row_factor, column_factor),) = factors
            return DenseLinear.from_dense(row_factor @ column_factor, structure, bias=layer.bias)
        case LowRank():
            ((row_factor, column_factor),) = factors
            return LowRankLinear.from_factors(row_factor, column_factor, bias=layer.bias)
        case Gblr():
            return GblrLinear.from_factors(
                structure, factors, rows=rows, columns=columns, bias=layer.bias
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
