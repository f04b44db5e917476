"""One curve for every kind of structure: what its sizes cost, and how wrong they are."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.structured import (
    curves,
    low_rank,
    rectangle_choice,
    sums_choice,
    sums_fit,
    toeplitz_like,
)
from models.structured.build import project
from models.structured.curves import error_curve, fitted_error
from models.structured.output_error import output_error
from models.structured.rectangle_choice import best_arc, choose_rectangles
from models.structured.sums_choice import choose_sum
from models.structures import BlockDiagonal, BlockSparse, Gblr, Rectangle, Structure
from models.structures.sizes import CLOSED_KINDS, KINDS, ClosedKind, Kind, saves

FEW = (0.4,)
# Where a small matrix has no size within that: rows, columns and a share at which there is one.
LARGER: dict[Kind, tuple[int, int, float]] = {
    "block sparse, tiles of 16": (32, 32, 0.4),
    "block sparse, tiles of 32": (48, 64, 0.4),
    "block sparse, tiles of 64": (128, 70, 0.4),
    "low rank + tiles of 16": (32, 24, 0.8),
    "low rank + tiles of 64": (96, 80, 0.8),
    "BLAST, 4 x 4": (10, 11, 0.7),
    "BLAST, 16 x 16": (24, 20, 0.9),
    "tensor train": (10, 11, 0.7),
    "CP": (15, 16, 0.8),
    "butterfly": (16, 16, 0.7),
    "butterfly gadget": (8, 9, 0.8),
    "circulant": (24, 24, 0.9),
    "Toeplitz-like": (80, 80, 0.95),
    "low displacement rank": (6, 7, 0.8),
}
# Given C, these curves have where a projection starts; all others where it ends.
BOUNDS: tuple[ClosedKind, ...] = (
    "block low rank, 4 x 4",
    "BTT, 4 x 4",
    "BTT, 8 x 8",
    "Kronecker sum",
    "einsum, BTT point",
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(columns: int) -> Tensor:
    inputs = normal(60, columns, seed=9) * torch.linspace(0.3, 2, columns)
    return inputs.T @ inputs / 60


def measured(
    weight: Tensor,
    structure: Structure,
    second_moment: Tensor | None,
    *,
    projected_by: Tensor | None = None,
) -> float:
    """Of the projection given C, or given another."""
    generator = torch.Generator().manual_seed(5)
    layer = project(weight, structure, second_moment=projected_by, generator=generator)
    left = output_error(weight - layer.to_dense().detach(), second_moment)
    return float(left / output_error(weight, second_moment))


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_tells_what_a_projection_reaches(
    kind: Kind, aware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums_fit, "MOST_STEPS", 5)
    monkeypatch.setattr(toeplitz_like, "STEPS", 5)
    usual = (24, 20, 0.4) if kind in CLOSED_KINDS else (10, 11, 0.4)
    rows, columns, share = LARGER.get(kind, usual)
    weight = normal(rows, columns)
    given = moment(columns) if aware else None
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    curve = error_curve(kind, weight, given, shares=(share,), generator=generator)
    assert torch.equal(generator.get_state(), before)
    costs = curve.macs if saves(kind) == "macs" else curve.parameters
    assert len(costs)
    assert all(one <= other for one, other in pairwise([*costs.tolist(), rows * columns - 1]))
    for index in range(0, len(costs), max(1, len(costs) // 3)):
        structure = curve.structure(index)
        structure.check_fits(rows=rows, columns=columns)
        assert structure.mac_count(rows=rows, columns=columns) == curve.macs[index]
        assert structure.parameter_count(rows=rows, columns=columns) == curve.parameters[index]
        error = measured(weight, structure, given, projected_by=given)
        told = float(curve.errors[index])
        if aware and kind in BOUNDS:
            assert error <= told + 1e-6
            assert told <= measured(weight, structure, given) + 1e-6
        else:
            assert error == pytest.approx(told, abs=1e-6)


def test_a_chosen_size_of_a_curve_of_bounds_is_measured_exactly() -> None:
    weight, given = normal(24, 20), moment(20)
    curve = error_curve("Kronecker sum", weight, given)
    structure = curve.structure(0)
    error = fitted_error(weight, structure, given)
    assert error == pytest.approx(measured(weight, structure, given, projected_by=given))
    assert error < float(curve.errors[0]) - 0.01


@pytest.mark.parametrize("kind", ["GBLR, rank 8", "GBLR, rank 32", "GBLR, rank 64"])
@pytest.mark.parametrize("side", [1, 2, 12, 24])
def test_a_matrix_smaller_than_a_rank_has_rectangles(kind: Kind, side: int) -> None:
    weight, shares = normal(side, side), (0.1, 0.3, 0.5)
    draws = torch.Generator().manual_seed(0)
    within = [int(share * side**2) for share in shares]
    found = choose_rectangles(weight, None, rank=64, budgets=within, generator=draws)
    curve = error_curve(kind, weight, shares=shares)
    assert len(curve.macs) == len({one for one in found if one is not None})


def test_budgets_with_the_same_rectangles_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Structure] = []

    def count(
        weight: Tensor, structure: Structure, *moment: Tensor | None, **draws: object
    ) -> float:
        fitted.append(structure)
        return 0.5

    monkeypatch.setattr(curves, "fitted_error", count)
    error_curve("GBLR, rank 8", normal(20, 20), shares=(0.3, 0.301, 0.302, 0.303))
    assert len(fitted) == len(set(fitted))


def test_of_two_members_of_one_cost_the_better_is_listed() -> None:
    better, worse = BlockDiagonal(blocks=2), BlockSparse(tile=2, positions=((0, 0), (1, 1)))
    members: list[tuple[Structure, float]] = [(better, 0.3), (worse, 0.4)]
    for given in (members, members[::-1]):
        curve = curves._listed("block diagonal", given, rows=4, columns=4)
        assert curve.errors.tolist() == [0.3]
        assert curve.structure(0) == better


@pytest.mark.parametrize("kind", ["GBLR, rank 8", "low rank + tiles of 16"])
def test_a_choice_is_the_same_each_time(kind: Kind) -> None:
    weight, given = normal(20, 24), moment(24)
    first, again = (error_curve(kind, weight, given, shares=FEW) for _ in range(2))
    assert torch.equal(first.errors, again.errors)
    for index in range(len(first.errors)):
        assert first.structure(index) == again.structure(index)


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_matrices_and_zeros_have_curves(kind: Kind) -> None:
    for weight in (normal(1, 1), normal(2, 3), torch.zeros(7, 5)):
        curve = error_curve(kind, weight, shares=(0.7,))
        assert curve.errors.isfinite().all()
        assert len(curve.macs) == len(curve.parameters) == len(curve.errors)


def planted_rectangles() -> tuple[Tensor, int]:
    """Three rectangles of rank 8, one around the border, and some noise; and what they cost."""
    weight = 0.02 * normal(96, 80, seed=1)
    places = [(5, 40, 50, 40), (50, 30, 10, 30), (80, 30, 35, 28)]
    for seed, (top, tall, left, wide) in enumerate(places):
        rows, columns = (top + torch.arange(tall)) % 96, (left + torch.arange(wide)) % 80
        content = normal(tall, 8, seed=2 * seed + 3) @ normal(8, wide, seed=2 * seed + 4)
        weight[rows[:, None], columns] += content / 8**0.5
    return weight, sum(8 * (tall + wide) for _, tall, _, wide in places)


def planted_tiles() -> tuple[Tensor, int]:
    weight = normal(96, 4, seed=1) @ normal(4, 80, seed=2) + 0.02 * normal(96, 80, seed=3)
    for seed, (row, column) in enumerate([(0, 3), (2, 1), (5, 4)]):
        tile = normal(16, 16, seed=seed + 4)
        weight[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += 3 * tile
    return weight, 4 * (96 + 80) + 3 * 16**2


def planted_blocks() -> tuple[Tensor, int]:
    weight = normal(96, 4, seed=1) @ normal(4, 80, seed=2) + 0.02 * normal(96, 80, seed=3)
    for block in range(8):
        content = normal(12, 10, seed=block + 4)
        weight[block * 12 : block * 12 + 12, block * 10 : block * 10 + 10] += 3 * content
    return weight, 4 * (96 + 80) + 8 * 120


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize(
    ("kind", "planted"),
    [
        ("GBLR, rank 8", planted_rectangles),
        ("low rank + tiles of 16", planted_tiles),
        ("low rank + block diagonal", planted_blocks),
    ],
)
def test_what_was_planted_is_found_where_low_rank_cannot(
    kind: Kind, planted: Callable[[], tuple[Tensor, int]], aware: bool
) -> None:
    weight, macs = planted()
    given = moment(80) if aware else None
    shares = (1.1 * macs / weight.numel(),)
    curve = error_curve(kind, weight, given, shares=shares)
    ranks = low_rank.error_curve(weight, given)
    plain = float(ranks.errors[ranks.macs <= 1.1 * macs].min())
    assert float(curve.errors[-1]) < 0.6 * plain


def test_on_a_large_matrix_a_sum_is_chosen_by_the_size_of_each_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sums_choice, "LARGE", 1)
    weight, macs = planted_tiles()
    given, generator = moment(80), torch.Generator().manual_seed(0)
    found = choose_sum("low rank + tiles of 16", weight, given, int(1.1 * macs), generator)
    assert found is not None
    tiles = found.parts[1]
    assert isinstance(tiles, BlockSparse)
    assert {(0, 3), (2, 1), (5, 4)} <= set(tiles.positions)


def test_rectangles_never_leave_more_than_low_rank_at_their_budget() -> None:
    weight, given = normal(40, 48) * torch.linspace(2, 0.1, 48), moment(48)
    for second_moment in (None, given):
        curve = error_curve("GBLR, rank 8", weight, second_moment, shares=(0.2, 0.5))
        ranks = low_rank.error_curve(weight, second_moment)
        for index, (macs, error) in enumerate(zip(curve.macs, curve.errors, strict=True)):
            assert isinstance(curve.structure(index), Gblr)
            affordable = ranks.errors[ranks.macs <= macs]
            assert not len(affordable) or error <= affordable.min() + 1e-9


def test_a_place_that_is_full_does_not_end_the_choice() -> None:
    place = {"row_start": 0, "row_count": 2, "column_start": 0, "column_count": 2}
    full = Rectangle(**place, rank=2)
    other = Rectangle(**place | {"row_start": 4}, rank=1)
    found = rectangle_choice._beginning([full, full, other], budget=8)
    assert found == Gblr(rectangles=(full, other))


def test_the_best_arc_may_go_around_the_border() -> None:
    assert best_arc(torch.tensor([3.0, -1, -2, 2])) == (3, 2)
    assert best_arc(torch.tensor([-3.0, 1, 2, -2])) == (1, 2)
    assert best_arc(torch.tensor([-3.0, -1, -2])) == (1, 1)
    assert best_arc(torch.tensor([1.0, 1, 1])) == (0, 3)
