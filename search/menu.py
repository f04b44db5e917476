"""What every layer could be made of, and the exact choice among it under one budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import NonNegativeInt

from models.cost import Quantity, layer_weight
from models.frozen import Spec
from models.spec import LayerSpec
from models.structures import Structure
from search.allocate import Item, allocate
from search.resolved import ResolvedSearch
from search.rules import MenuKind
from search.spec import BudgetUnreachable


class MenuItem(Spec):
    """One structure of one size for one layer.

    `macs` are for one input vector. `error` is the relative squared error of the layer's outputs;
    `harm` is how far the network's answers are expected to move, comparable across layers.
    `latency` is the layer's time as estimated, where the budget is in time.
    """

    kind: MenuKind
    structure: Structure
    macs: NonNegativeInt
    parameters: NonNegativeInt
    error: float
    harm: float
    latency: NonNegativeInt | None = None

    def timed(self, layer: LayerSpec, resolved: ResolvedSearch) -> "MenuItem":
        """The same item with its time by a search's prices."""
        time = resolved.measured.estimate(layer, self.kind, self.macs)
        return self.model_copy(update={"latency": time})

    def cost(self, layer: LayerSpec, quantity: Quantity) -> int:
        """What the item costs the network in a search's quantity."""
        if quantity == "latency":
            assert self.latency is not None, "menus are priced under a budget in time"
            return self.latency
        size = self.macs if quantity == "macs" else self.parameters
        return layer_weight(layer, quantity) * size


class LayerMenu(Spec):
    """The items of one layer, kind by kind, each from the cheapest up."""

    layer: LayerSpec
    items: tuple[MenuItem, ...]

    def admitted(self, resolved: ResolvedSearch) -> list[MenuItem]:
        """List what the layer's rule admits, from the cheapest up, each better than the one before.

        A layer without a rule costs at least what rank 1 does, with which its learning may begin;
        in time it may be as fast as it can.
        """
        quantity, rule = resolved.quantity, resolved.rules.get(self.layer.name)
        least, most, kinds = 0, None, None
        if rule is not None:
            most, kinds = rule.limit(resolved.dense(self.layer)), rule.kinds(resolved.structures)
        elif quantity != "latency":
            least = layer_weight(self.layer, quantity) * (self.layer.rows + self.layer.columns)
        priced = sorted(
            (item.cost(self.layer, quantity), item.harm, index)
            for index, item in enumerate(self.items)
            if kinds is None or item.kind in kinds
        )
        found: list[MenuItem] = []
        for cost, harm, index in priced:
            possible = cost >= least and (most is None or cost <= most)
            if possible and (not found or harm < found[-1].harm):
                found.append(self.items[index])
        return found


@dataclass(frozen=True, slots=True)
class MenuAllocation:
    """One item for every layer by name; no choice within the budget harms less than `bound`."""

    items: dict[str, MenuItem]
    cost: int
    harm: float
    bound: float


class Menu(Spec):
    """The menus of all layers that can be exchanged, in the network's order."""

    layers: tuple[LayerMenu, ...] = ()

    def without(self, names: Sequence[str]) -> "Menu":
        """The menus of the other layers."""
        return Menu(layers=tuple(one for one in self.layers if one.layer.name not in names))

    def priced(self, resolved: ResolvedSearch) -> "Menu":
        """The same menus with every item's time by a search's prices."""
        return Menu(
            layers=tuple(
                LayerMenu(
                    layer=one.layer,
                    items=tuple(item.timed(one.layer, resolved) for item in one.items),
                )
                for one in self.layers
            )
        )

    def allocate(self, resolved: ResolvedSearch, budget: int) -> MenuAllocation:
        """Choose every layer's item for the least total harm within the budget and the rules.

        Raises BudgetUnreachable where even the cheapest items exceed it.
        """
        admitted = [one.admitted(resolved) for one in self.layers]
        for one, choices in zip(self.layers, admitted, strict=True):
            if not choices:
                raise BudgetUnreachable("layers.rules", f"nothing is left for {one.layer.name}")
        quantity = resolved.quantity
        priced = [
            [Item(item.cost(one.layer, quantity), item.harm) for item in items]
            for one, items in zip(self.layers, admitted, strict=True)
        ]
        found = allocate(priced, budget)
        items = {
            one.layer.name: choices[index]
            for one, choices, index in zip(self.layers, admitted, found.chosen, strict=True)
        }
        return MenuAllocation(items, found.cost, found.error, found.bound)
