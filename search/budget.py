"""The constraint: what every rectangle costs, and which pieces leave so that the cost fits.

A piece is a whole group of rank-1 terms, the segment of cells at one end of its row or column
support, or the whole alternative that stands beside the rectangles. Pieces leave in the order of
saliency over saved cost: what the loss misses least for what it frees goes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from search.relaxation import RelaxedLinear, cell_sums, inside

Pieces = Literal["ranks", "rectangles"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Every way to cut every group of one layer: new sides, saved cost, and what it spoils."""

    score: Float[Tensor, "groups ways"]
    saved: Float[Tensor, "groups ways"]
    rows: Int[Tensor, "groups ways 2"]
    columns: Int[Tensor, "groups ways 2"]


def group_cost(
    rows: Int[Tensor, "*groups 2"], columns: Int[Tensor, "*groups 2"], group: int
) -> Int[Tensor, "*groups"]:
    """Count the numbers each group holds: its factors, or the dense tile where that is less."""
    height, width = rows[..., 1], columns[..., 1]
    return torch.minimum(group * (height + width), height * width)


def relaxed_cost(layers: Sequence[RelaxedLinear], weights: Sequence[int]) -> int:
    """Return the exact cost of all layers; a weight is what one number of a layer costs."""
    return sum(
        weight * (int(group_cost(*layer.rectangles(), layer.group).sum()) + layer.beside_size)
        for layer, weight in zip(layers, weights, strict=True)
    )


def shrink_to(
    layers: Sequence[RelaxedLinear],
    weights: Sequence[int],
    target: int,
    *,
    pieces: Pieces,
) -> None:
    """Remove the pieces of least saliency over saved cost until the cost is at most `target`.

    Each round cuts every group at most once, and saliencies do not change between rounds. An
    alternative leaves only where it is worth the least of all.
    """
    excess = relaxed_cost(layers, weights) - target
    while excess > 0:
        cuts = [
            cut_ways(layer, weight, pieces) for layer, weight in zip(layers, weights, strict=True)
        ]
        best = [cut.score.min(-1) for cut in cuts]
        owners = [(i, g) for i, layer in enumerate(layers) for g in range(layer.groups)]
        beside = [i for i, layer in enumerate(layers) if layer.beside is not None]
        whole = [_score_beside(layers[i], weights[i], excess) for i in beside]
        scores = torch.cat([*(scores for scores, _ in best), *whole])
        assert scores.min() < torch.inf, "saliencies are finite, and something costs"
        new = [layer.rectangles() for layer in layers]
        before = excess
        for position in torch.argsort(scores, stable=True).tolist():
            if excess <= 0 or scores[position] == torch.inf:
                break
            if position >= len(owners):
                if excess < before:
                    break  # others may be worth even less once they are cut again
                index = beside[position - len(owners)]
                excess -= weights[index] * layers[index].beside_size
                layers[index].lives.zero_()
                continue
            index, group = owners[position]
            way = int(best[index][1][group])
            new[index][0][group] = cuts[index].rows[group, way]
            new[index][1][group] = cuts[index].columns[group, way]
            excess -= int(cuts[index].saved[group, way])
        for layer, (rows, columns) in zip(layers, new, strict=True):
            layer.set_rectangles(rows, columns)


def _score_beside(layer: RelaxedLinear, weight: int, excess: int) -> Float[Tensor, " 1"]:
    """Score a whole alternative by what it saves of the excess: more would only be too much."""
    saved = min(excess, weight * layer.alternative_size)
    return (layer.alternative_saliency / max(1, saved))[None]


def cut_ways(layer: RelaxedLinear, weight: int, pieces: Pieces) -> Cut:
    """List the ways to cut every group: all of it, or one end of its rows or columns."""
    rows, columns = layer.rectangles()
    cost = group_cost(rows, columns, layer.group)
    nothing = torch.zeros_like(rows)
    ways = [(nothing, nothing, layer.whole_saliency)]
    if pieces == "rectangles":
        ways += [
            (side, columns, spoilt)
            for side, spoilt in _ends(rows, layer.row_saliency, layer.layer.rows, layer.row_cell)
        ]
        ways += [
            (rows, side, spoilt)
            for side, spoilt in _ends(
                columns, layer.column_saliency, layer.layer.columns, layer.column_cell
            )
        ]
    saved = torch.stack([cost - group_cost(r, c, layer.group) for r, c, _ in ways], -1) * weight
    spoilt = torch.stack([spoilt for *_, spoilt in ways], -1)
    score = torch.where(saved > 0, spoilt / saved.clamp(min=1), torch.inf)
    return Cut(
        score=score,
        saved=saved,
        rows=torch.stack([r for r, _, _ in ways], -2),
        columns=torch.stack([c for _, c, _ in ways], -2),
    )


def _ends(
    side: Int[Tensor, "groups 2"], saliency: Float[Tensor, "groups cells"], length: int, cell: int
) -> list[tuple[Int[Tensor, "groups 2"], Float[Tensor, " groups"]]]:
    """Return each side without its first and without its last cell, and the saliency lost.

    A side that covers the whole circle has no ends: it opens at its least salient cell.
    """
    start, count = side.unbind(-1)
    within = inside(side, length)
    alive = cell_sums(within.float(), cell)
    density = (saliency / alive.clamp(min=1)).repeat_interleave(cell, -1)[:, :length]
    density = density * within
    around = torch.cat([torch.zeros_like(density[:, :1]), density.repeat(1, 2).cumsum(-1)], -1)
    size = count.clamp(max=cell)

    weakest = saliency.argmin(-1)
    full = count == length
    after_weakest = torch.where((weakest + 1) * cell >= length, 0, (weakest + 1) * cell)
    begin = torch.where(full, after_weakest, start)
    size = torch.where(full & ((weakest + 1) * cell > length), length - weakest * cell, size)

    def lost(first: Tensor) -> Tensor:
        first = (first % length)[:, None]
        return (around.gather(1, first + size[:, None]) - around.gather(1, first))[:, 0]

    last = torch.stack([begin, count - size], -1)
    head = torch.stack([(begin + size) % length, count - size], -1)
    return [(head, lost(begin)), (last, lost(begin + count - size))]
