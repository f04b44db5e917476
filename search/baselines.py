"""The plain choices that every search must beat: one family each, within the same budget."""

import copy
import math
from collections.abc import Mapping
from typing import assert_never

import torch
from torch import nn

from models.cost import layer_cost
from models.networks.build import build_network
from models.spec import Gpt, Matrix, Mixer, Mlp, Model, NetworkSpec, Vit, dense_network
from models.structured.base import StructuredLinear
from models.structured.build import project
from models.structured.low_rank import LowRankLinear
from models.structures import LowRank, Structure
from search.families import Family, best_member
from search.menu_making import build_item
from search.profile import Profile, rank_cost
from search.resolved import ResolvedSearch
from search.spec import BudgetUnreachable, BuiltBaseline, LearnerSettings

Built = tuple[NetworkSpec, nn.Module]

# Low rank with learned ranks: whole ranks leave data-aware factors of twice the budget, those first
# whose squared first-order change of the loss is least for what they cost.
LEARNED_RANKS = LearnerSettings(
    start="output",
    start_excess=2.0,
    pieces="ranks",
    metric="gradient",
    schedule=0.4,
    gaudi=False,
)


def build_baseline(
    name: BuiltBaseline,
    reference: nn.Module,
    measured: Profile,
    resolved: ResolvedSearch,
    *,
    generator: torch.Generator,
) -> Built:
    """Return the family's network, ready for training; BudgetUnreachable where it has none."""
    match name:
        case "dense_shrunk":
            spec = shrunk(resolved)
            return spec, build_network(spec, generator=generator)
        case "uniform_svd":
            ranks = uniform_ranks(resolved, resolved.budget)
            return exchanged(reference, resolved, _truncated(measured, ranks))
        case "uniform_low_rank":
            ranks = uniform_ranks(resolved, resolved.budget)
            return exchanged(reference, resolved, low_rank_layers(measured, ranks))
        case "allocated_low_rank":
            ranks, _ = measured.allocate_ranks(resolved, resolved.budget, "output")
            return exchanged(reference, resolved, low_rank_layers(measured, ranks))
        case "block_diagonal" | "monarch" | "btt" | "blast" | "tensor_train":
            return exchanged(reference, resolved, _uniform(name, measured, resolved))
        case "allocated_structures":
            return exchanged(reference, resolved, _allocated(measured, resolved))
        case _:
            assert_never(name)


def exchanged(
    source: nn.Module, resolved: ResolvedSearch, layers: Mapping[str, StructuredLinear]
) -> Built:
    """Return a copy of a network with the named layers exchanged, and its spec."""
    network = copy.deepcopy(source)
    for name, layer in layers.items():
        network.set_submodule(name, layer)
    structures: dict[str, Structure] = {name: layer.spec for name, layer in layers.items()}
    return resolved.network.with_structures(structures), network


def low_rank_layers(measured: Profile, ranks: list[int]) -> dict[str, StructuredLinear]:
    """Return the data-aware low-rank layers of these ranks."""
    return {
        p.layer.name: LowRankLinear.from_factors(
            p.output_terms.row_factor[:, :rank].to(p.weight.dtype),
            p.output_terms.column_factor[:rank].to(p.weight.dtype),
            bias=p.bias,
        )
        for p, rank in zip(measured.layers, ranks, strict=True)
    }


def _truncated(measured: Profile, ranks: list[int]) -> dict[str, StructuredLinear]:
    """Return the nearest matrices of these ranks, whatever the layers' inputs are."""
    return {
        p.layer.name: project(p.weight, LowRank(rank=rank), bias=p.bias)
        for p, rank in zip(measured.layers, ranks, strict=True)
    }


def uniform_ranks(resolved: ResolvedSearch, budget: int) -> list[int]:
    """Give every layer the same share of its dense cost, at least rank 1, and use up the rest.

    What rounding leaves goes to the layers in order; what rank 1 overspends, the largest pay back.
    """
    layers, share = resolved.layers, budget / resolved.dense_cost
    ranks = [
        max(1, math.floor(share * layer.rows * layer.columns / (layer.rows + layer.columns)))
        for layer in layers
    ]
    steps = [rank_cost(layer, 1, resolved) for layer in layers]
    slack = budget - sum(rank * step for rank, step in zip(ranks, steps, strict=True))
    while slack < 0 and max(ranks) > 1:
        largest = ranks.index(max(ranks))
        ranks[largest] -= 1
        slack += steps[largest]
    if slack < 0:
        raise BudgetUnreachable("budget", f"{budget:,} does not pay for rank 1 in every layer")
    for index, layer in enumerate(layers):
        if steps[index] <= slack and ranks[index] < min(layer.rows, layer.columns):
            ranks[index] += 1
            slack -= steps[index]
    return ranks


def _uniform(
    family: Family, measured: Profile, resolved: ResolvedSearch
) -> dict[str, StructuredLinear]:
    """Give every layer the same share of its dense cost."""
    share = resolved.budget / resolved.dense_cost
    return {p.layer.name: best_member(family, p, share) for p in measured.layers}


def _allocated(measured: Profile, resolved: ResolvedSearch) -> dict[str, StructuredLinear]:
    """Give every layer what the allocation over the whole menu chooses for it."""
    items = measured.menu.allocate(resolved, resolved.budget).items
    return {p.layer.name: build_item(p, items[p.layer.name]) for p in measured.layers}


def shrunk(resolved: ResolvedSearch) -> NetworkSpec:
    """Return the widest dense network of the same kind whose eligible layers fit the budget."""
    best = None
    for model in _narrower(resolved.network.model):
        network = dense_network(model, resolved.network.task)
        layers = [layer for layer in network.layers if layer.name in resolved.eligible]
        if sum(layer_cost(layer, resolved.quantity) for layer in layers) > resolved.budget:
            break
        best = network
    if best is None:
        raise BudgetUnreachable("budget", "no narrower dense network is within the budget")
    return best


def _narrower(model: Model) -> list[Model]:
    """List the models of growing width up to the given one."""
    match model:
        case Vit() | Gpt():
            widths = range(model.heads, model.width + 1, model.heads)
            return [model.model_copy(update={"width": width}) for width in widths]
        case Mixer():
            hidden = model.token_hidden
            return [
                model.model_copy(
                    update={
                        "width": width,
                        "token_hidden": max(1, round(hidden * width / model.width)),
                    }
                )
                for width in range(1, model.width + 1)
            ]
        case Mlp():
            top = max(model.hidden)
            return [
                model.model_copy(
                    update={"hidden": tuple(max(1, round(h * w / top)) for h in model.hidden)}
                )
                for w in range(1, top + 1)
            ]
        case Matrix():
            return []
        case _:
            assert_never(model)
