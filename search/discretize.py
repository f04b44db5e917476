"""From relaxed layers to hard ones: the budget used to its last step, then exact structures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from models.spec import Dense, Gblr, LowRank, Rectangle, Structure
from models.structured.base import StructuredLinear
from models.structured.dense import DenseLinear
from models.structured.gblr import GblrLinear
from models.structured.low_rank import LowRankLinear
from search.budget import Pieces, group_cost, relaxed_cost
from search.relaxation import RelaxedLinear, inside

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """The least or the best that could be added to a group: its new sides and what they cost."""

    layer: int
    group: int
    rows: Int[Tensor, " 2"]
    columns: Int[Tensor, " 2"]
    cost: int
    worth: float


@torch.no_grad()
def fill(
    layers: Sequence[RelaxedLinear], weights: Sequence[int], budget: int, *, pieces: Pieces
) -> int:
    """Grow the most salient groups until no step fits any more; return the least step left out."""
    while True:
        steps = [
            step
            for index, (layer, weight) in enumerate(zip(layers, weights, strict=True))
            for step in _steps(index, layer, weight, pieces)
        ]
        slack = budget - relaxed_cost(layers, weights)
        fitting = [step for step in steps if step.cost <= slack]
        if not fitting:
            return min((step.cost for step in steps), default=0)
        best = max(fitting, key=lambda step: (step.worth, -step.layer, -step.group))
        rows, columns = layers[best.layer].rectangles()
        rows[best.group], columns[best.group] = best.rows, best.columns
        layers[best.layer].set_rectangles(rows, columns)


def _steps(index: int, layer: RelaxedLinear, weight: int, pieces: Pieces) -> list[Step]:
    rows, columns = layer.rectangles()
    cost = group_cost(rows, columns, layer.group)
    shape = torch.tensor([layer.layer.rows, layer.layer.columns])
    if pieces == "rectangles":
        ways = [(_longer(rows, int(shape[0])), columns), (rows, _longer(columns, int(shape[1])))]
        possible = cost > 0
    else:
        full = torch.zeros_like(rows)
        full_rows, full_columns = full.clone(), full.clone()
        full_rows[:, 1], full_columns[:, 1] = shape[0], shape[1]
        ways = [(full_rows, full_columns)]
        possible = cost == 0
    steps = []
    for new_rows, new_columns in ways:
        added = (group_cost(new_rows, new_columns, layer.group) - cost) * weight
        for group in torch.nonzero(possible & (added > 0)).flatten().tolist():
            worth = float(layer.whole_saliency[group]) / max(1, int(cost[group]) * weight)
            steps.append(
                Step(index, group, new_rows[group], new_columns[group], int(added[group]), worth)
            )
    return steps


def _longer(side: Tensor, length: int) -> Tensor:
    longer = side.clone()
    longer[:, 1] = (side[:, 1] + 1).clamp(max=length)
    return longer


@torch.no_grad()
def harden(layer: RelaxedLinear) -> StructuredLinear:
    """Return the hard layer: groups on one rectangle are merged, dead ones are gone."""
    merged: dict[tuple[int, ...], list[Factors]] = {}
    rows, columns = layer.rectangles()
    height, width = layer.layer.rows, layer.layer.columns
    row_inside, column_inside = inside(rows, height), inside(columns, width)
    for index in range(layer.groups):
        if not (row_inside[index].any() and column_inside[index].any()):
            continue
        terms = slice(index * layer.group, (index + 1) * layer.group)
        key = (*_canonical(rows[index], height), *_canonical(columns[index], width))
        merged.setdefault(key, []).append(
            (
                layer.row_factors[_positions(key[:2], height), terms],
                layer.column_factors[terms][:, _positions(key[2:], width)],
            )
        )
    factors = [
        (torch.cat([u for u, _ in parts], 1), torch.cat([v for _, v in parts], 0))
        for parts in merged.values()
    ]
    rectangles = [
        Rectangle(
            row_start=key[0],
            row_count=key[1],
            column_start=key[2],
            column_count=key[3],
            rank=min(u.shape[1], key[1], key[3]),
        )
        for key, (u, _) in zip(merged, factors, strict=True)
    ]
    structure = simplest(tuple(rectangles), rows=height, columns=width)
    return _layer(structure, factors, layer)


def _layer(
    structure: Structure, factors: Sequence[Factors], layer: RelaxedLinear
) -> StructuredLinear:
    rows, columns = layer.layer.rows, layer.layer.columns
    match structure:
        case Dense():
            ((row_factor, column_factor),) = factors
            return DenseLinear.from_dense(row_factor @ column_factor, bias=layer.bias)
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


def _canonical(side: Tensor, length: int) -> tuple[int, int]:
    start, count = side.tolist()
    return (0, length) if count == length else (start, count)


def _positions(side: tuple[int, ...], length: int) -> Tensor:
    start, count = side
    return (start + torch.arange(count)) % length
