"""What one layer costs beside its dense one, counted or as it was timed, for those who show it."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.cost import Quantity, dense_cost, layer_cost
from models.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """The layers of one network in a quantity; `times` and `dense_times` are of the searched ones.

    In time, both are in millionths of what all searched layers take dense.
    """

    quantity: Quantity
    times: Mapping[str, int] | None = None
    dense_times: Mapping[str, int] | None = None

    def of(self, layer: LayerSpec) -> tuple[int, int] | None:
        """Return what a layer costs and would cost dense; None of one that was not timed."""
        if self.quantity != "latency":
            return layer_cost(layer, self.quantity), dense_cost(layer, self.quantity)
        times, dense = self.times or {}, self.dense_times or {}
        if layer.name not in times or layer.name not in dense:
            return None
        return times[layer.name], dense[layer.name]
