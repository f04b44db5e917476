"""Using the budget up: relaxed layers grow until no step fits any more."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from search.budget import Pieces, group_cost, relaxed_cost
from search.discretize import Side, canonical, hard_size, merged, merged_size, positions
from search.relaxation import RelaxedLinear


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
def fill_groups(
    layers: Sequence[RelaxedLinear], weights: Sequence[int], budget: int, *, pieces: Pieces
) -> None:
    """Grow the most salient groups, by their own costs, until no step fits any more.

    Only supports change: an optimiser may go on with the same parameters.
    """
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


@torch.no_grad()
def fill_merged(layers: Sequence[RelaxedLinear], weights: Sequence[int], budget: int) -> None:
    """Use what merging has made free: equal rectangles are cheaper as one, tiles most of all.

    What is added holds zeros, so the layers keep their values: see `bake`.
    """
    while True:
        for layer in layers:
            _drop_redundant_terms(layer)
        slack = budget - sum(
            weight * hard_size(layer) for layer, weight in zip(layers, weights, strict=True)
        )
        growths = [
            growth
            for index, (layer, weight) in enumerate(zip(layers, weights, strict=True))
            for growth in _growths(index, layer, weight, slack)
        ]
        fitting = [growth for growth in growths if growth.cost <= slack]
        if not fitting:
            return
        best = max(fitting, key=lambda growth: (growth.worth, -growth.layer, growth.groups))
        rows, columns = layers[best.layer].rectangles()
        chosen = torch.tensor(best.groups)
        rows[chosen], columns[chosen] = torch.tensor(best.rows), torch.tensor(best.columns)
        layers[best.layer].set_rectangles(rows, columns)


def _growths(index: int, layer: RelaxedLinear, weight: int, slack: int) -> list[Growth]:
    height, width = layer.layer.rows, layer.layer.columns
    places = merged(layer)
    whole = ((0, height), (0, width))
    # Beside a live alternative terms may have to begin: its own next size costs no less.
    if list(places) == [whole] or (not places and layer.beside is not None):
        return _one_more_rank(index, layer, weight, slack)
    size = merged_size(places, layer.group)
    growths = []
    for (rows, columns), groups in places.items():
        longer_rows = canonical((rows[0], min(height, rows[1] + 1)), height)
        longer_columns = canonical((columns[0], min(width, columns[1] + 1)), width)
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
    whole = ((0, height), (0, width))
    rank = layer.group * len(merged(layer).get(whole, ()))
    before, after = (min(height * width, r * (height + width)) for r in (rank, rank + 1))
    cost = (after - before) * weight
    if not cost:
        return []
    if cost > slack:
        return [Growth(index, (), (0, height), (0, width), cost, 0)]
    _split_groups(layer)
    alive = set(merged(layer).get(whole, ()))
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
        down, across = positions(rows, layer.layer.rows), positions(columns, layer.layer.columns)
        terms = torch.tensor(groups)
        tile = layer.row_factors[down][:, terms] @ layer.column_factors[terms][:, across]
        one = torch.eye(rank, dtype=tile.dtype)
        row_factor, column_factor = (one, tile) if rows[1] == rank else (tile, one)
        # The dropped ones too: a low-rank layer may take a term back, which then adds nothing.
        layer.row_factors[:, terms], layer.column_factors[terms] = 0.0, 0.0
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
    height, width = layer.layer.rows, layer.layer.columns
    full_rows, full_columns = torch.zeros_like(rows), torch.zeros_like(columns)
    full_rows[:, 1], full_columns[:, 1] = height, width
    ways = [(full_rows, full_columns, cost == 0)]
    if pieces == "rectangles":
        ways.append((_longer(rows, height), columns, cost > 0))
        ways.append((rows, _longer(columns, width), cost > 0))
    steps = []
    for new_rows, new_columns, possible in ways:
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
