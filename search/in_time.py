"""One share of its dense time for every layer: what plain families are made of under such a budget.

A layer in which no size is really faster than dense stays dense; the others then get less.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from models.spec import LayerSpec
from models.structures import Structure
from models.structures.sizes import Kind, largest_within
from search.latency_table import WHOLE
from search.resolved import ResolvedSearch
from search.spec import BudgetUnreachable

Choice = TypeVar("Choice")
# The share of its dense time that a layer may take: its choice, and what that is estimated to take.
Chooser = Callable[[LayerSpec, int], tuple[Choice, int]]


def ranks_in_time(resolved: ResolvedSearch, budget: int) -> list[int]:
    """Return every layer's largest rank within one share of its time, rank 1 at least.

    The rank of a layer that stays dense is full.
    """

    def choose(layer: LayerSpec, allowed: int) -> tuple[int, int]:
        full = min(layer.rows, layer.columns)
        if resolved.low_rank(layer, 1) == resolved.dense(layer):
            return full, resolved.dense(layer)
        low, high = 1, full
        while low < high:  # a rank more never takes less
            middle = (low + high + 1) // 2
            if resolved.low_rank(layer, middle) <= allowed:
                low = middle
            else:
                high = middle - 1
        return low, resolved.low_rank(layer, low)

    return list(_uniform(resolved, budget, choose).values())


def members_in_time(
    resolved: ResolvedSearch, kinds: Sequence[Kind], budget: int
) -> dict[str, tuple[Structure, ...]]:
    """Return, of each kind, every layer's largest timed size within one share of its time.

    Where none is, the fastest one; where none is faster than dense, nothing.
    """
    prices = resolved.measured

    def choose(layer: LayerSpec, allowed: int) -> tuple[tuple[Structure, ...], int]:
        found = []
        for kind in kinds:
            curve = prices.curve(layer, kind)
            timed = (
                []
                if curve is None
                else [
                    (prices.of_ratio(layer, ratio), macs)
                    for macs, ratio in zip(curve.macs, curve.ratios, strict=True)
                ]
            )
            faster = [one for one in timed if one[0] < resolved.dense(layer)]
            if faster:
                within = [one for one in faster if one[0] <= allowed]
                found.append((kind, max(within, key=lambda one: one[1]) if within else min(faster)))
        # A kind that is not within the share does not take part where another is.
        least = min((time for _, (time, _) in found), default=0)
        kept = [(kind, one) for kind, one in found if one[0] <= max(allowed, least)]
        sizes = [
            largest_within(kind, rows=layer.rows, columns=layer.columns, budget=macs)
            for kind, (_, macs) in kept
        ]
        cost = max((time for _, (time, _) in kept), default=resolved.dense(layer))
        return tuple(size for size in sizes if size is not None), cost

    return _uniform(resolved, budget, choose)


def _uniform(resolved: ResolvedSearch, budget: int, choose: Chooser[Choice]) -> dict[str, Choice]:
    """Find the largest share with which all layers together are within the budget, by halving."""

    def chosen(share: float) -> tuple[dict[str, Choice], int]:
        found = {
            layer.name: choose(layer, int(share * resolved.dense(layer)))
            for layer in resolved.layers
        }
        return {name: one for name, (one, _) in found.items()}, sum(c for _, c in found.values())

    low, high = 0, WHOLE
    best, cost = chosen(0.0)
    if cost > budget:
        raise BudgetUnreachable(
            "budget",
            f"{budget / WHOLE:.4f} of the dense layers' time is below the least that this family "
            f"takes, {cost / WHOLE:.4f}",
        )
    while high - low > 1:
        middle = (low + high) // 2
        found, cost = chosen(middle / WHOLE)
        if cost <= budget:
            low, best = middle, found
        else:
            high = middle
    return best
