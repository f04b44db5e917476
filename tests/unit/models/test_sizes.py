"""The stated sizes of every kind: by arithmetic, for any matrix."""

import time
from itertools import pairwise

import pytest

from models.structures import STRUCTURE_ADAPTER
from models.structures.sizes import KINDS, SHARES, Kind, cost, grid, largest_within

SHAPES = [(64, 64), (48, 160), (97, 101), (13, 7), (2, 3), (1, 1), (1, 97)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_sizes_fit_and_rise_in_cost_and_stay_below_dense(
    kind: Kind, rows: int, columns: int
) -> None:
    found = grid(kind, rows=rows, columns=columns)
    costs = [cost(kind, one, rows=rows, columns=columns) for one in found]
    assert all(before < after for before, after in pairwise([0, *costs, rows * columns]))
    assert len(found) <= len(SHARES)
    for one in found:
        one.check_fits(rows=rows, columns=columns)
        assert STRUCTURE_ADAPTER.validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_a_network_has_sizes_of_every_kind(kind: Kind) -> None:
    assert grid(kind, rows=768, columns=3072, shares=(0.3,))
    assert grid(kind, rows=757, columns=769, shares=(0.5, 0.7))


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_budget_never_makes_a_size_smaller(kind: Kind) -> None:
    def within(budget: int) -> int:
        found = largest_within(kind, rows=60, columns=84, budget=budget)
        return 0 if found is None else cost(kind, found, rows=60, columns=84)

    costs = [within(budget) for budget in range(0, 60 * 84, 97)]
    falls = [before - after for before, after in pairwise(costs)]
    # Pieces that are drawn anywhere, and padding, make it no sure step up.
    assert max(falls) <= 0.1 * 60 * 84
    assert costs[0] == 0


def test_all_sizes_of_all_kinds_are_there_at_once() -> None:
    started = time.process_time()
    for kind in KINDS:
        if not kind.startswith("block sparse"):  # whose tiles are listed one by one
            grid(kind, rows=3072, columns=768)
    assert time.process_time() - started < 2
