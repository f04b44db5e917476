"""The published start without a reference: rectangles of random matrices, in a network drawn anew.

Notation: a layer has K rank-1 terms of a random dense matrix's SVD, sqrt(s) on both sides. For a
mean width p, the first p K / 2 are whole, and the others (p / 2) / (1 - p / 2) of every side, so
that the start costs what K p whole terms do (Lee & Kim, ICLR 2024, arXiv 2310.18882).
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.networks.build import build_network
from models.spec import LayerSpec
from models.structured.base import draw_normal
from models.structured.dense import DenseLinear
from models.structured.low_rank import decompose
from search.baselines import uniform_ranks
from search.from_scratch import maximal_update_groups, silence
from search.relaxation import Relaxation, RelaxedLinear, inside
from search.resolved import ResolvedSearch
from search.spec import LearnerSettings


def relax_from_scratch(
    resolved: ResolvedSearch, settings: LearnerSettings, *, seed: int
) -> tuple[nn.Module, Relaxation]:
    """Draw the network, and rectangles in its eligible layers that cost the start's excess."""
    generator = torch.Generator().manual_seed(seed)
    network = build_network(resolved.network, generator=generator)
    cost = min(int(settings.start_excess * resolved.budget), resolved.dense_cost)
    layers = {}
    for layer, rank in zip(resolved.layers, uniform_ranks(resolved, cost), strict=True):
        layers[layer.name] = _drawn(layer, rank, settings.group, generator)
        network.set_submodule(layer.name, layers[layer.name])
    if isinstance(network.head, DenseLinear):
        silence(network.head)
    return network, Relaxation(network, layers)


def scratch_groups(network: nn.Module, supports: list[nn.Parameter], decay: float) -> Any:
    """Group the weights by the maximal-update rule, without the supports."""
    left_out = set(map(id, supports))
    return [
        group | {"params": [p for p in group["params"] if id(p) not in left_out]}
        for group in maximal_update_groups(network, weight_decay=decay)
    ]


def _drawn(layer: LayerSpec, rank: int, group: int, generator: torch.Generator) -> RelaxedLinear:
    """Draw a layer with twice the terms that its cost pays for whole, as far as there are any."""
    least = min(layer.rows, layer.columns)
    group = min(group, least)
    groups = max(1, min(2 * rank, least) // group)
    weight = torch.empty(layer.rows, layer.columns)
    draw_normal(weight, fan_in=layer.columns, generator=generator)
    terms = decompose(weight)
    drawn = RelaxedLinear(
        layer,
        terms.row_factor[:, : groups * group].float(),
        terms.column_factor[: groups * group].float(),
        torch.zeros(layer.rows) if layer.bias else None,
        group=group,
    )
    share = min(1.0, rank / (groups * group))
    whole = round(share / 2 * groups)
    narrow = (share / 2) / (1 - share / 2)
    places = torch.rand(groups, 2, generator=generator)
    drawn.set_rectangles(
        _sides(places[:, 0], whole, narrow, layer.rows),
        _sides(places[:, 1], whole, narrow, layer.columns),
    )
    with torch.no_grad():  # what is outside of the rectangles takes variance with it
        energy = _matrix(drawn).square().sum() * layer.columns / weight.numel()
        for factors in (drawn.row_factors, drawn.column_factors):
            factors.div_(energy.clamp(min=1e-12) ** 0.25)
    return drawn


def _sides(places: Tensor, whole: int, narrow: float, length: int) -> Tensor:
    counts = torch.full((len(places),), max(1, round(narrow * length)))
    counts[:whole] = length
    starts = (places * length).long().clamp(max=length - 1)
    starts[:whole] = 0
    return torch.stack([starts, counts], -1)


def _matrix(layer: RelaxedLinear) -> Tensor:
    rows, columns = layer.rectangles()
    down = inside(rows, layer.layer.rows).repeat_interleave(layer.group, 0)
    across = inside(columns, layer.layer.columns).repeat_interleave(layer.group, 0)
    return (layer.row_factors * down.T) @ (layer.column_factors * across)
