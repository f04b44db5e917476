"""The plain choices that every search must beat: one family each, within the same budget."""

import copy
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
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
from search.clock import Clock
from search.families import KINDS, Family, best_of, even_members
from search.in_time import members_in_time, ranks_in_time
from search.menu_making import build_item
from search.profile import LayerProfile, Profile
from search.progress import Progress, Silent, followed
from search.resolved import ResolvedSearch
from search.spec import BudgetUnreachable, BuiltBaseline, LearnerSettings
from search.within_time import within_time

Built = tuple[NetworkSpec, nn.Module]
# What a layer was projected on, by its name: not again for another choice of the other layers.
Projections = dict[tuple[str, tuple[Structure, ...]], StructuredLinear]

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
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> Built:
    """Return the family's network, ready for training; BudgetUnreachable where it has none.

    Under a budget in time `clock` says whether it is within it; layers better run dense stay so.
    Raises StoppedError between the projections of two layers.
    """
    build = partial(
        _built,
        *(name, reference, measured),
        generator=generator,
        clock=clock,
        known={},
        progress=progress or Silent(),
    )
    if clock is None or name == "dense_shrunk":
        return build(resolved)
    return within_time(clock, resolved, reference, build)


def _built(
    name: BuiltBaseline,
    reference: nn.Module,
    measured: Profile,
    resolved: ResolvedSearch,
    *,
    generator: torch.Generator,
    clock: Clock | None,
    known: Projections,
    progress: Progress,
) -> Built:
    match name:
        case "dense_shrunk":
            spec = shrunk(resolved, clock)
            return spec, build_network(spec, generator=generator)
        case "uniform_svd":
            ranks = uniform_ranks(resolved, resolved.budget)
            return exchanged(reference, resolved, _truncated(measured, resolved, ranks))
        case "uniform_low_rank":
            ranks = uniform_ranks(resolved, resolved.budget)
            return exchanged(reference, resolved, low_rank_layers(measured, resolved, ranks))
        case "allocated_low_rank":
            ranks, _ = measured.allocate_ranks(resolved, resolved.budget, "output")
            return exchanged(reference, resolved, low_rank_layers(measured, resolved, ranks))
        case "block_diagonal" | "monarch" | "btt" | "blast" | "tensor_train":
            layers = _uniform(name, measured, resolved, known, progress)
            return exchanged(reference, resolved, layers)
        case "allocated_structures":
            layers = allocated(measured, resolved, known, progress)
            return exchanged(reference, resolved, layers)
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


def low_rank_layers(
    measured: Profile, resolved: ResolvedSearch, ranks: list[int]
) -> dict[str, StructuredLinear]:
    """Return the data-aware low-rank layers of these ranks."""
    return {
        p.layer.name: LowRankLinear.from_factors(
            p.output_terms.row_factor[:, :rank].to(p.weight.dtype),
            p.output_terms.column_factor[:rank].to(p.weight.dtype),
            bias=p.bias,
        )
        for p, rank in _exchanged_ranks(measured, resolved, ranks)
    }


def _truncated(
    measured: Profile, resolved: ResolvedSearch, ranks: list[int]
) -> dict[str, StructuredLinear]:
    """Return the nearest matrices of these ranks, whatever the layers' inputs are."""
    return {
        p.layer.name: project(p.weight, LowRank(rank=rank), bias=p.bias)
        for p, rank in _exchanged_ranks(measured, resolved, ranks)
    }


def _exchanged_ranks(
    measured: Profile, resolved: ResolvedSearch, ranks: list[int]
) -> list[tuple[LayerProfile, int]]:
    """List the layers that are exchanged, with their ranks: but for those better run dense."""
    return [
        (p, rank)
        for p, rank in zip(measured.layers, ranks, strict=True)
        if resolved.quantity != "latency"
        or resolved.low_rank(p.layer, rank) < resolved.dense(p.layer)
    ]


def uniform_ranks(resolved: ResolvedSearch, budget: int) -> list[int]:
    """Give every layer the same share of its dense cost, at least rank 1, and use up the rest.

    What rounding leaves goes to the layers in order; what rank 1 overspends, the largest pay back.
    """
    if resolved.quantity == "latency":
        return ranks_in_time(resolved, budget)
    layers, share = resolved.layers, budget / resolved.dense_cost
    ranks = [
        max(1, math.floor(share * layer.rows * layer.columns / (layer.rows + layer.columns)))
        for layer in layers
    ]
    steps = [resolved.low_rank(layer, 1) for layer in layers]
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
    family: Family,
    measured: Profile,
    resolved: ResolvedSearch,
    known: Projections,
    progress: Progress,
) -> dict[str, StructuredLinear]:
    """Give every layer the same share of its dense cost; what is better run dense is left out."""
    members: Mapping[str, Sequence[Structure]]
    if resolved.quantity == "latency":
        members = members_in_time(resolved, KINDS[family], resolved.budget)
    else:
        members = even_members(family, [p.layer for p in measured.layers], resolved)
    found = {}
    for p in followed(measured.layers, progress, "projection", unit="layer"):
        sizes = tuple(members[p.layer.name])
        if sizes:
            key = p.layer.name, sizes
            if key not in known:
                known[key] = best_of(p, sizes)
            found[p.layer.name] = known[key]
    return found


def allocated(
    measured: Profile, resolved: ResolvedSearch, known: Projections, progress: Progress
) -> dict[str, StructuredLinear]:
    """Give every layer what the allocation over the whole menu chooses for it."""
    menu = measured.menu.priced(resolved) if resolved.quantity == "latency" else measured.menu
    items = menu.allocate(resolved, resolved.budget).items
    found = {}
    for p in followed(measured.layers, progress, "projection", unit="layer"):
        item = items[p.layer.name]
        key = p.layer.name, (item.structure,)
        if key not in known:
            known[key] = build_item(p, item)
        found[p.layer.name] = known[key]
    return found


def shrunk(resolved: ResolvedSearch, clock: Clock | None = None) -> NetworkSpec:
    """Return the widest dense network of the same kind whose eligible layers fit the budget."""
    narrower = _narrower(resolved.network.model)

    def fits(model: Model) -> bool:
        network = dense_network(model, resolved.network.task)
        if resolved.quantity == "latency":
            assert clock is not None, "a budget in time is kept by a clock"
            return sum(clock.costs(network, resolved).values()) <= resolved.budget
        layers = [layer for layer in network.layers if layer.name in resolved.eligible]
        return sum(layer_cost(layer, resolved.quantity) for layer in layers) <= resolved.budget

    # As many as fit are found by halving: in time, every width that is asked for is measured.
    count = bisect_left(narrower, 1, key=lambda model: 0 if fits(model) else 1)
    if not count:
        raise BudgetUnreachable("budget", "no narrower dense network is within the budget")
    return dense_network(narrower[count - 1], resolved.network.task)


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
