"""The profile of a search in the words of its report."""

from collections.abc import Collection, Sequence
from itertools import groupby

from models.spec import LayerSpec
from search.latency_table import LayerShape, Prices
from search.menu import LayerMenu, MenuAllocation, MenuItem
from search.profile import LayerProfile, Profile
from search.profile_report import (
    AllocatedLayer,
    AllocationReport,
    LeftDense,
    MenuCurve,
    ProfiledLayer,
    ProfileReport,
    TimesReport,
)
from search.resolved import ResolvedSearch, least_times
from search.settling import allocate_menu

SIZES = 32  # of one kind that a reader is given


def summarise(measured: Profile, resolved: ResolvedSearch, budgets: Sequence[int]) -> ProfileReport:
    """Tell a profile, and its allocation under each budget.

    Raises BudgetUnreachable where the menus, as they were made, admit no choice.
    """
    found = [(budget, allocate_menu(measured, resolved, budget)) for budget in budgets]
    layers = []
    for p, menu in zip(measured.layers, measured.menu.layers, strict=True):
        chosen = [allocation.items[p.layer.name] for _, allocation in found]
        layers.append(_layer(p, menu, chosen, resolved))
    return ProfileReport(
        quantity=resolved.quantity,
        dense_cost=resolved.dense_cost,
        layers=tuple(layers),
        allocations=tuple(_allocation(b, one, measured, resolved) for b, one in found),
        left_dense=tuple(LeftDense(layer=n, reason=r) for n, r in measured.left_dense.items()),
        times=None if resolved.prices is None else _times(resolved, resolved.prices),
    )


def _times(resolved: ResolvedSearch, prices: Prices) -> TimesReport:
    """Tell the dense times that a budget in time is counted in, and what can be reached."""
    seconds = {one.shape: one.seconds for one in prices.table.dense}
    return TimesReport(
        batch=prices.table.batch,
        network_seconds=prices.table.network_seconds,
        dense_seconds=tuple(seconds[LayerShape.of(layer)] for layer in resolved.layers),
        smallest_cost=sum(least_times(resolved).values()),
    )


def _layer(
    p: LayerProfile, menu: LayerMenu, chosen: Sequence[MenuItem], resolved: ResolvedSearch
) -> ProfiledLayer:
    curves = [
        _curve(p.layer, list(items), chosen)
        for _, items in groupby(menu.items, key=lambda item: item.kind)
    ]
    return ProfiledLayer(
        name=p.layer.name,
        rows=p.layer.rows,
        columns=p.layer.columns,
        tokens=p.layer.tokens,
        sensitivity=p.sensitivity,
        rule=resolved.rules.get(p.layer.name),
        menu=tuple(curves),
    )


def _curve(layer: LayerSpec, items: Sequence[MenuItem], chosen: Collection[MenuItem]) -> MenuCurve:
    last = len(items) - 1
    steps = {round(i * last / (SIZES - 1)) for i in range(SIZES)} if last >= SIZES else set()
    kept = [item for i, item in enumerate(items) if last < SIZES or i in steps or item in chosen]
    return MenuCurve(
        kind=items[0].kind,
        structures=tuple(item.structure.in_words() for item in kept),
        macs=tuple(item.cost(layer, "macs") for item in kept),
        parameters=tuple(item.parameters for item in kept),
        latencies=tuple(item.latency for item in kept if item.latency is not None),
        errors=tuple(_short(item.error) for item in kept),
        harms=tuple(_short(item.harm) for item in kept),
    )


def _allocation(
    budget: int, found: MenuAllocation, measured: Profile, resolved: ResolvedSearch
) -> AllocationReport:
    layers = []
    for p in measured.layers:
        item = found.items[p.layer.name]
        cost = item.cost(p.layer, resolved.quantity)
        layers.append(
            AllocatedLayer(
                layer=p.layer.name,
                kind=item.kind,
                structure=item.structure,
                cost=cost,
                share=cost / resolved.dense(p.layer),
                error=item.error,
                harm=item.harm,
            )
        )
    return AllocationReport(
        budget=budget,
        cost=found.cost,
        harm=found.harm,
        bound=found.bound,
        layers=tuple(layers),
    )


def _short(value: float) -> float:
    """Six digits are enough to draw a curve."""
    return float(f"{value:.6g}")
