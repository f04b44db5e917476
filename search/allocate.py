"""Choosing one item a layer under one budget: the multiple-choice knapsack, solved exactly.

minimise sum_l error[l][i_l]  subject to  sum_l cost[l][i_l] <= budget, one i_l for each layer l.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array

from search.spec import BudgetUnreachable

TOLERANCE = 2e-6  # share of the budget by which HiGHS may miss it, and a little more


@dataclass(frozen=True, slots=True)
class Item:
    """One way to make a layer: what it costs and how much it spoils."""

    cost: int
    error: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """The chosen item of each layer, and the bound that proves how good the choice is."""

    chosen: tuple[int, ...]
    cost: int
    error: float
    bound: float


def allocate(menus: Sequence[Sequence[Item]], budget: int) -> Allocation:
    """Choose one item of every menu with the least total error within the budget.

    Raises BudgetUnreachable where even the cheapest items exceed it.
    """
    cheapest = sum(min(item.cost for item in menu) for menu in menus)
    if cheapest > budget:
        raise BudgetUnreachable("budget", f"{budget:,} is below the smallest cost, {cheapest:,}")
    # HiGHS holds constraints to a tolerance only, so that a large budget may slip by a few units:
    # then it is asked again for a little less. The first bound holds for the whole budget.
    chosen, bound = _solve(menus, budget)
    limit = budget
    while (cost := _cost(menus, chosen)) > budget:
        limit -= max(2 * (cost - budget), math.ceil(TOLERANCE * budget))
        if limit < cheapest:
            chosen = tuple(
                min(range(len(m)), key=[item.cost for item in m].__getitem__) for m in menus
            )
        else:
            chosen, _ = _solve(menus, limit)
    return Allocation(
        chosen=chosen,
        cost=cost,
        error=sum(menu[i].error for menu, i in zip(menus, chosen, strict=True)),
        bound=bound,
    )


def _cost(menus: Sequence[Sequence[Item]], chosen: Sequence[int]) -> int:
    return sum(menu[i].cost for menu, i in zip(menus, chosen, strict=True))


def _solve(menus: Sequence[Sequence[Item]], budget: int) -> tuple[tuple[int, ...], float]:
    """Return the chosen items, whose cost may slip over the budget a little, and the bound."""
    items = [item for menu in menus for item in menu]
    unit = math.gcd(*(item.cost for item in items))
    costs = np.array([item.cost // unit for item in items], dtype=np.float64)
    errors = np.array([item.error for item in items], dtype=np.float64)
    scale = float(errors.max()) or 1.0  # HiGHS has absolute tolerances
    solution = milp(
        errors / scale,
        integrality=np.ones(len(items), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(_one_of_each(menus), 1, 1),
            LinearConstraint(costs[None, :], -np.inf, budget // unit),
        ],
        options={"mip_rel_gap": 1e-4},
    )
    if solution.x is None:
        raise RuntimeError(f"HiGHS found no allocation: {solution.message}")
    taken = np.flatnonzero(solution.x > 0.5)
    starts = np.cumsum([0, *(len(menu) for menu in menus)])
    chosen = tuple(int(i - start) for i, start in zip(taken, starts[:-1], strict=True))
    return chosen, float(solution.mip_dual_bound) * scale


def _one_of_each(menus: Sequence[Sequence[Item]]) -> csr_array:
    layers = np.repeat(np.arange(len(menus)), [len(menu) for menu in menus])
    ones = np.ones(len(layers))
    shape = (len(menus), len(layers))
    return coo_array((ones, (layers, np.arange(len(layers)))), shape=shape).tocsr()
