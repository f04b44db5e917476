"""Networks within a budget in time: chosen by a table, timed as they are, and chosen again."""

import copy
from collections.abc import Callable

from torch import nn

from models.spec import LayerSpec, NetworkSpec
from models.structures import Blast, BlockDiagonal, BlockLowRank, Btt, Dense, LowRank, Structure
from models.structures.sizes import Kind
from search.clock import Clock, curve_through
from search.latency_table import LayerShape, Prices
from search.resolved import ResolvedSearch
from search.spec import BudgetUnreachable
from search.tightening import CLOSE

ROUNDS = 16
TOO_LONG = "whatever was chosen by the table took longer than the budget, once it was timed"

Made = tuple[NetworkSpec, nn.Module]


def within_time(
    clock: Clock,
    resolved: ResolvedSearch,
    reference: nn.Module,
    make: Callable[[ResolvedSearch], Made],
) -> Made:
    """Return what is made within the budget, as timed; what is no faster than dense stays so.

    The table is corrected by what was timed, here alone, for the next choice: so a size that was
    thought to be faster than it is does not stay in the way. Where there is nothing to correct, the
    next choice has to do with less. Raises BudgetUnreachable where nothing is within the budget.
    """
    best: Made | None = None
    most, target, prices = -1, resolved.budget, resolved.measured
    for attempt in range(ROUNDS):
        try:
            made = make(resolved.priced(prices).model_copy(update={"budget": target}))
        except BudgetUnreachable as error:
            if best is None and target == resolved.budget:
                raise
            if best is None:
                raise BudgetUnreachable("budget", TOO_LONG) from error
            break
        times = clock.costs(made[0], resolved)
        cost = sum(times.values())
        if most < cost <= resolved.budget:
            best, most = made, cost
        if (1 - CLOSE) * resolved.budget <= cost <= resolved.budget:
            break
        before = prices
        prices = corrected(prices, made[0], resolved, times)
        if prices == before and cost <= resolved.budget:
            break
        if cost > resolved.budget and (prices == before or attempt >= ROUNDS // 2):
            target -= max(cost - resolved.budget, round(CLOSE * resolved.budget))
    if best is None:
        raise BudgetUnreachable("budget", TOO_LONG)
    return _dense_where_slow(*best, reference, clock.costs(best[0], resolved), resolved)


def _dense_where_slow(
    spec: NetworkSpec,
    network: nn.Module,
    reference: nn.Module,
    times: dict[str, int],
    resolved: ResolvedSearch,
) -> Made:
    slow = [
        layer.name
        for layer in spec.layers
        if layer.name in times
        and times[layer.name] == resolved.measured.parts[layer.name]
        and not isinstance(layer.structure, Dense)
    ]
    for name in slow:
        network.set_submodule(name, copy.deepcopy(reference.get_submodule(name)))
    return spec.with_structures(dict.fromkeys(slow, Dense())), network


def corrected(
    prices: Prices, network: NetworkSpec, resolved: ResolvedSearch, times: dict[str, int]
) -> Prices:
    """Return the prices with the times of a network's layers in the curves of their kinds."""
    shapes = {layer.name: LayerShape.of(layer) for layer in resolved.layers}
    points: dict[tuple[LayerShape, Kind], dict[int, float]] = {}
    for layer in network.layers:
        kind = kind_of(layer.structure)
        if layer.name in times and kind is not None:
            ratio = max(1, times[layer.name]) / max(1, prices.parts[layer.name])
            points.setdefault((shapes[layer.name], kind), {})[_macs(layer)] = ratio
    curves = []
    for curve in prices.table.curves:
        new = points.get((curve.shape, curve.kind), {})
        known = dict(zip(curve.macs, curve.ratios, strict=True))
        curves.append(curve_through(curve.shape, curve.kind, known | new) if new else curve)
    table = prices.table.model_copy(update={"curves": tuple(curves)})
    return Prices(parts=prices.parts, network_share=prices.network_share, table=table)


def kind_of(structure: Structure) -> Kind | None:  # noqa: PLR0911 - one for each kind
    """Return the kind whose size a structure is, of those that menus have in most searches."""
    match structure:
        case LowRank():
            return "low rank"
        case BlockDiagonal():
            return "block diagonal"
        case BlockLowRank(ranks=ranks) if len(ranks) == len(ranks[0]) == 4:
            return "block low rank, 4 x 4"
        case Btt(input_blocks=4, output_blocks=4):
            return "BTT, 4 x 4"
        case Btt(input_blocks=8, output_blocks=8):
            return "BTT, 8 x 8"
        case Btt(rank=1):
            return "Monarch, rank 1"
        case Blast(blocks=4):
            return "BLAST, 4 x 4"
        case Blast(blocks=16):
            return "BLAST, 16 x 16"
        case _:
            return None


def _macs(layer: LayerSpec) -> int:
    return layer.structure.mac_count(rows=layer.rows, columns=layer.columns)
