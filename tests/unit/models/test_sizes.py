"""The stated sizes of every kind: by arithmetic, for any matrix."""

from itertools import pairwise

import pytest
import torch

from models.structured.build import project
from models.structures import STRUCTURE_ADAPTER, BlockDiagonal
from models.structures.base import StructureSpec
from models.structures.sizes import (
    KINDS,
    SHARES,
    Kind,
    Room,
    budgets,
    cost,
    grid,
    knob,
    largest_within,
    some_rectangles,
)

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
    # The low-rank part of a sum takes what the other leaves, by whole ranks of 144 numbers.
    assert max(falls) <= (0.01 * 60 * 84 if kind.startswith("low rank +") else 0)
    assert costs[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_among_thousands_is_found_by_a_few_trials(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    admits, tried = Room.admits, []

    def counted(self: Room, structure: StructureSpec) -> bool:
        tried.append(structure)
        return admits(self, structure)

    monkeypatch.setattr(Room, "admits", counted)
    largest_within(kind, rows=3072, columns=768, budget=3072 * 768 // 3)
    assert len(tried) < 40


def test_a_share_that_is_a_number_of_macs_over_dense_comes_to_as_many() -> None:
    for macs in range(1, 60 * 84):
        assert budgets(rows=60, columns=84, shares=(macs / (60 * 84),)) == [macs]


def test_more_blocks_never_hold_more_of_a_matrix() -> None:
    def held(blocks: int) -> int:
        ones = torch.ones(60, 84)
        return int(project(ones, BlockDiagonal(blocks=blocks)).to_dense().detach().sum())

    assert all(more >= fewer for more, fewer in pairwise(map(held, range(1, 61))))
    # 13 blocks cost more, and the 13th is padding alone.
    assert largest_within("block diagonal", rows=60, columns=84, budget=504) == BlockDiagonal(
        blocks=12
    )
    assert held(12) == held(13)


@pytest.mark.parametrize("kind", ["GBLR, rank 8", "GBLR, rank 32", "GBLR, rank 64"])
@pytest.mark.parametrize("side", [3, 16, 24, 64])
def test_rectangles_are_drawn_for_every_budget(kind: Kind, side: int) -> None:
    for budget in budgets(rows=side, columns=side):
        if budget:
            found = some_rectangles(Room(kind, side, side, budget), knob(kind))
            found.check_fits(rows=side, columns=side)
            assert 0 < found.mac_count(rows=side, columns=side) <= budget
