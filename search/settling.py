"""Layers that are settled before anything is learned: what is left is an ordinary search.

Those that a rule binds get what the allocation over the whole menu chooses, in every trial.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from models.spec import NetworkSpec
from models.structures import Dense, Structure
from search.menu import MenuAllocation
from search.menu_making import build_item
from search.profile import Awareness, Profile
from search.resolved import ResolvedSearch


@dataclass(frozen=True, slots=True)
class Settled:
    """A search over the layers without a rule; the others are in the network as they will stay."""

    resolved: ResolvedSearch
    network: nn.Module
    profile: Profile

    @property
    def whole(self) -> tuple[NetworkSpec, nn.Module]:
        """The network as it is, where rules bind all layers."""
        return self.resolved.network, self.network


def settle(reference: nn.Module, measured: Profile, resolved: ResolvedSearch) -> Settled:
    """Exchange the layers that a rule binds, and take their cost off the budget.

    Those that cannot be exchanged stay as they are, and cost what they cost dense.
    """
    if not resolved.rules and not measured.left_dense:
        return Settled(resolved, reference, measured)
    chosen = allocate_menu(measured, resolved, resolved.budget).items
    network, cost = copy.deepcopy(reference), _left_dense_cost(measured, resolved)
    structures: dict[str, Structure] = dict.fromkeys(measured.left_dense, Dense())
    for p in measured.layers:
        if p.layer.name in resolved.rules:
            item = chosen[p.layer.name]
            network.set_submodule(p.layer.name, build_item(p, item))
            structures[p.layer.name] = item.structure
            cost += item.cost(p.layer, resolved.quantity)
    left = replace(
        measured,
        layers=tuple(p for p in measured.layers if p.layer.name not in structures),
        menu=measured.menu.without(list(structures)),
        left_dense={},
    )
    return Settled(_rest(resolved, structures, cost), network, left)


def settle_dense(settled: Settled, aware: Awareness) -> Settled:
    """Keep those layers dense that an allocation of ranks under a budget in time runs so.

    What is learned are the ranks of the others.
    """
    resolved, measured = settled.resolved, settled.profile
    ranks, _ = measured.allocate_ranks(resolved, resolved.budget, aware)
    dense = [
        p.layer.name
        for p, rank in zip(measured.layers, ranks, strict=True)
        if resolved.low_rank(p.layer, rank) == resolved.dense(p.layer)
    ]
    cost = sum(resolved.dense(layer) for layer in resolved.layers if layer.name in dense)
    left = replace(
        measured,
        layers=tuple(p for p in measured.layers if p.layer.name not in dense),
        menu=measured.menu.without(dense),
    )
    return Settled(_rest(resolved, dict.fromkeys(dense, Dense()), cost), settled.network, left)


def allocate_menu(measured: Profile, resolved: ResolvedSearch, budget: int) -> MenuAllocation:
    """Choose every layer's item; `cost` includes the layers that cannot be exchanged."""
    left = _left_dense_cost(measured, resolved)
    found = measured.menu.allocate(resolved, budget - left)
    return replace(found, cost=found.cost + left)


def _left_dense_cost(measured: Profile, resolved: ResolvedSearch) -> int:
    layers = [layer for layer in resolved.layers if layer.name in measured.left_dense]
    return sum(resolved.dense(layer) for layer in layers)


def _rest(
    resolved: ResolvedSearch, structures: Mapping[str, Structure], cost: int
) -> ResolvedSearch:
    free = [layer for layer in resolved.layers if layer.name not in structures]
    return resolved.model_copy(
        update={
            "network": resolved.network.with_structures(dict(structures)),
            "eligible": tuple(layer.name for layer in free),
            "budget": resolved.budget - cost,
            "dense_cost": sum(resolved.dense(layer) for layer in free),
            "smallest_cost": sum(resolved.low_rank(layer, 1) for layer in free),
            "rules": {},
        }
    )
