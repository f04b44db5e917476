"""A budget in time for a learner that counts numbers: so much a number, about right near the start.

Notation: of a layer t(r) is the estimated time of rank r, r0 the rank that an allocation under the
budget gives it. Near r0, t(r) is about t(r0) + s (r - r0) with the secant's slope s from r0 / 2 to
2 r0. The structure found at last is timed as it is.
"""

from collections.abc import Sequence

from models.spec import LayerSpec, NetworkSpec
from models.structures import Structure
from search.clock import Clock
from search.discretize import hard_structure
from search.gradient import Constraint
from search.profile import Awareness, Profile
from search.relaxation import RelaxedLinear
from search.resolved import ResolvedSearch

FINE = 1_000_000  # units of the linear cost in one of the table's


def constraint_in_time(
    measured: Profile, resolved: ResolvedSearch, aware: Awareness, clock: Clock
) -> Constraint:
    """Return what about keeps a budget in time, and measures whether it did."""
    ranks, found = measured.allocate_ranks(resolved, resolved.budget, aware)
    weights = tuple(
        _weight(layer, rank, resolved) for layer, rank in zip(resolved.layers, ranks, strict=True)
    )
    spent = sum(
        weight * rank * (layer.rows + layer.columns)
        for weight, rank, layer in zip(weights, ranks, resolved.layers, strict=True)
    )
    left = FINE * (resolved.budget - found.cost)

    def excess(layers: Sequence[RelaxedLinear]) -> int:
        network = structures_of(layers, resolved)
        return FINE * (sum(clock.costs(network, resolved).values()) - resolved.budget)

    return Constraint(spent + left, weights, excess)


def structures_of(layers: Sequence[RelaxedLinear], resolved: ResolvedSearch) -> NetworkSpec:
    """Return the network that relaxed layers amount to as they are."""
    found: dict[str, Structure] = {one.layer.name: hard_structure(one) for one in layers}
    return resolved.network.with_structures(found)


def longest_rank(layer: LayerSpec, resolved: ResolvedSearch) -> int:
    """Return the largest rank that is faster than dense; rank 1 where none is."""
    low, high = 1, min(layer.rows, layer.columns)
    while low < high:
        middle = (low + high + 1) // 2
        if resolved.low_rank(layer, middle) < resolved.dense(layer):
            low = middle
        else:
            high = middle - 1
    return low


def _weight(layer: LayerSpec, rank: int, resolved: ResolvedSearch) -> int:
    low = max(1, rank // 2)
    high = max(low, min(2 * rank, longest_rank(layer, resolved)))
    if high == low:  # one rank only: what it takes, whole
        rise, ranks = resolved.low_rank(layer, low), low
    else:
        rise, ranks = resolved.low_rank(layer, high) - resolved.low_rank(layer, low), high - low
    return max(1, round(FINE * rise / (ranks * (layer.rows + layer.columns))))
