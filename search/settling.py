"""Layers that a rule binds, settled before anything is learned: what is left is an ordinary search.

They get the structures that the allocation over the whole menu chooses, in every trial.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from models.cost import dense_cost, layer_weight
from models.spec import NetworkSpec
from models.structures import Structure
from search.menu_making import build_item
from search.profile import Profile
from search.spec import ResolvedSearch


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
    """Exchange the layers that a rule binds, and take their cost off the budget."""
    if not resolved.rules:
        return Settled(resolved, reference, measured)
    chosen = measured.menu.allocate(resolved, resolved.budget).items
    network, structures, cost = copy.deepcopy(reference), dict[str, Structure](), 0
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
    )
    return Settled(_rest(resolved, structures, cost), network, left)


def _rest(
    resolved: ResolvedSearch, structures: Mapping[str, Structure], cost: int
) -> ResolvedSearch:
    free = [layer for layer in resolved.layers if layer.name not in structures]
    quantity = resolved.quantity
    return resolved.model_copy(
        update={
            "network": resolved.network.with_structures(dict(structures)),
            "eligible": tuple(layer.name for layer in free),
            "budget": resolved.budget - cost,
            "dense_cost": sum(dense_cost(layer, quantity) for layer in free),
            "smallest_cost": sum(
                layer_weight(layer, quantity) * (layer.rows + layer.columns) for layer in free
            ),
            "rules": {},
        }
    )
