"""From relaxed layers to hard ones: the budget used to its last step, then exact structures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from models.spec import Dense, Gblr, LowRank, Rectangle, Structure
from models.structured.base import StructuredLinear
from models.structured.dense import DenseLinear
from models.structured.gblr import GblrLinear
from models.structured.low_rank import LowRankLinear
from search.budget import Pieces, group_cost, relaxed_cost, shrink_to
from search.relaxation import RelaxedLinear

Factors = tuple[Tensor, Tensor]
Side = tuple[int, int]  # start and count of a rectangle's rows or columns, cyclic


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
    """Grow what is most salient until no step fits any more; return the least step left out.

    First single groups, by their own costs; then, as equal rectangles are cheaper once merged,
    what will be merged, together.
    """
    shrink_to(layers, weights, budget, pieces=pieces)  # a very short phase may end above it
    _fill_groups(layers, weights, budget, pieces=pieces)
    return _fill_merged(layers, weights, budget)


def _fill_groups(
    layers: Sequence[RelaxedLinear], weights: Sequence[int], budget: int, *, pieces: Pieces
) -> None:
    while True:
        steps = [
            step
            for index, (layer, weight) in enumerate(zip(layers, weights, strict=True))
            for step in _steps(index, layer, weight, pieces)
        ]
        slack = budget - relaxed_cost(layers, weights)
        fitting = [step for step in steps if step.cost <= slack]
        if not fitting:
            return
        best = max(fitting, key=lambda step: (step.worth, -step.layer, -step.group))
        rows, columns = layers[best.layer].rectangles()
        rows[best.group], columns[best.group] = best.rows, best.columns
        layers[best.layer].set_rectangles(rows, columns)


@dataclass(frozen=True, slots=True)
class Growth:
    """Groups of one layer that take new sides together, what that costs, and their saliency."""

    layer: int
    groups: tuple[int, ...]
    rows: Side
    columns: Side
    cost: int
    worth: float


def _fill_merged(layers: Sequence[RelaxedLinear], weights: Sequence[int], budget: int) -> int:
    while True:
        for layer in layers:
            _drop_redundant_terms(layer)
        slack = budget - sum(
            weight * merged_size(merged(layer), layer.group)
            for layer, weight in zip(layers, weights, strict=True)
        )
        growths = [
            growth
            for index, (layer, weight) in enumerate(zip(layers, weights, strict=True))
            for growth in _growths(index, layer, weight, slack)
        ]
        fitting = [growth for growth in growths if growth.cost <= slack]
        if not fitting:
            return min((growth.cost for growth in growths), default=0)
        best = max(fitting, key=lambda growth: (growth.worth, -growth.layer, growth.groups))
        rows, columns = layers[best.layer].rectangles()
        chosen = torch.tensor(best.groups)
        rows[chosen], columns[chosen] = torch.tensor(best.rows), torch.tensor(best.columns)
        layers[best.layer].set_rectangles(rows, columns)


def merged(layer: RelaxedLinear) -> dict[tuple[Side, Side], tuple[int, ...]]:
    """Return the distinct rectangles of a layer, each with the groups that lie on it."""
    found: dict[tuple[Side, Side], tuple[int, ...]] = {}
    sides = (side.tolist() for side in layer.rectangles())
    for index, (rows, columns) in enumerate(zip(*sides, strict=True)):
        if rows[1] and columns[1]:
            key = (_canonical(rows, layer.layer.rows), _canonical(columns, layer.layer.columns))
            found[key] = (*found.get(key, ()), index)
    return found


def merged_size(places: Mapping[tuple[Side, Side], Sequence[int]], group: int) -> int:
    """Count the numbers that a layer holds once equal rectangles are merged."""
    return sum(
        min(height * width, len(groups) * group * (height + width))
        for ((_, height), (_, width)), groups in places.items()
    )


def _growths(index: int, layer: RelaxedLinear, weight: int, slack: int) -> list[Growth]:
    height, width = layer.layer.rows, layer.layer.columns
    places = merged(layer)
    whole = ((0, height), (0, width))
    if list(places) == [whole]:
        return _one_more_rank(index, layer, weight, slack)
    size = merged_size(places, layer.group)
    growths = []
    for (rows, columns), groups in places.items():
        longer_rows = _canonical((rows[0], min(height, rows[1] + 1)), height)
        longer_columns = _canonical((columns[0], min(width, columns[1] + 1)), width)
        worth = float(layer.whole_saliency[list(groups)].sum())
        for key in ((longer_rows, columns), (rows, longer_columns)):
            if key == (rows, columns):
                continue
            after = {place: owners for place, owners in places.items() if owners != groups}
            after[key] = (*after.get(key, ()), *groups)
            cost = (merged_size(after, layer.group) - size) * weight
            growths.append(Growth(index, groups, *key, cost, worth))
    return growths


def _one_more_rank(index: int, layer: RelaxedLinear, weight: int, slack: int) -> list[Growth]:
    """Let a low-rank layer gain one rank: of a group's terms that left, or a new one at zero."""
    height, width = layer.layer.rows, layer.layer.columns
    rank = layer.group * len(merged(layer)[(0, height), (0, width)])
    before, after = (min(height * width, r * (height + width)) for r in (rank, rank + 1))
    cost = (after - before) * weight
    if not cost:
        return []
    if cost > slack:
        return [Growth(index, (), (0, height), (0, width), cost, 0)]
    _split_groups(layer)
    alive = set(merged(layer)[(0, height), (0, width)])
    if len(alive) == layer.groups:
        _append_dead_term(layer)
    dead = [group for group in range(layer.groups) if group not in alive]
    best = max(dead, key=lambda group: (float(layer.whole_saliency[group]), -group))
    worth = float(layer.whole_saliency[best])
    return [Growth(index, (best,), (0, height), (0, width), cost, worth)]


def _drop_redundant_terms(layer: RelaxedLinear) -> None:
    """Write a tile of more terms than its rank as so many terms, so that it grows at their cost."""
    if all(len(on) * layer.group <= min(r[1], c[1]) for (r, c), on in merged(layer).items()):
        return
    _split_groups(layer)
    new_rows, new_columns = layer.rectangles()
    for (rows, columns), groups in merged(layer).items():
        rank = min(rows[1], columns[1])
        if len(groups) <= rank:
            continue
        kept, dropped = torch.tensor(groups[:rank]), torch.tensor(groups[rank:])
        down, across = _positions(rows, layer.layer.rows), _positions(columns, layer.layer.columns)
        terms = torch.tensor(groups)
        tile = layer.row_factors[down][:, terms] @ layer.column_factors[terms][:, across]
        one = torch.eye(rank, dtype=tile.dtype)
        row_factor, column_factor = (one, tile) if rows[1] == rank else (tile, one)
        layer.row_factors[:, kept], layer.column_factors[kept] = 0.0, 0.0
        layer.row_factors[down[:, None], kept] = row_factor
        layer.column_factors[kept[:, None], across] = column_factor
        new_rows[dropped, 1], new_columns[dropped, 1] = 0, 0
    layer.set_rectangles(new_rows, new_columns)


def _split_groups(layer: RelaxedLinear) -> None:
    """Let every rank-1 term be a group of its own, on the same rectangle."""
    times, layer.group, layer.groups = layer.group, 1, layer.groups * layer.group
    for name in ("row_support", "column_support"):
        support = getattr(layer, name).detach().repeat_interleave(times, 0)
        setattr(layer, name, torch.nn.Parameter(support))
    for name in ("row_saliency", "column_saliency", "whole_saliency"):
        setattr(layer, name, getattr(layer, name).repeat_interleave(times, 0))


def _append_dead_term(layer: RelaxedLinear) -> None:
    """Append a term that adds nothing yet, and reads what the others do not."""
    basis, _ = torch.linalg.qr(layer.column_factors.detach().T, mode="complete")
    new = basis[:, min(layer.groups, basis.shape[1] - 1)]
    columns = torch.cat([layer.column_factors.detach(), new[None]])
    rows = F.pad(layer.row_factors.detach(), (0, 1))
    layer.row_factors, layer.column_factors = torch.nn.Parameter(rows), torch.nn.Parameter(columns)
    for name in ("row_support", "column_support"):
        support = F.pad(getattr(layer, name).detach(), (0, 0, 0, 1))
        setattr(layer, name, torch.nn.Parameter(support))
    layer.row_saliency = F.pad(layer.row_saliency, (0, 0, 0, 1))
    layer.column_saliency = F.pad(layer.column_saliency, (0, 0, 0, 1))
    layer.whole_saliency = F.pad(layer.whole_saliency, (0, 1))
    layer.groups += 1


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
    height, width = layer.layer.rows, layer.layer.columns
    factors, rectangles = [], []
    for (rows, columns), groups in merged(layer).items():
        terms = (torch.tensor(groups)[:, None] * layer.group + torch.arange(layer.group)).flatten()
        factors.append(
            (
                layer.row_factors[_positions(rows, height)][:, terms],
                layer.column_factors[terms][:, _positions(columns, width)],
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


def _canonical(side: Sequence[int], length: int) -> Side:
    start, count = side
    return (0, length) if count == length else (start, count)


def _positions(side: Side, length: int) -> Tensor:
    start, count = side
    return (start + torch.arange(count)) % length
