"""One curve for every kind of structure: what its sizes cost, and how wrong they are."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from models.structured import low_rank, sums_choice
from models.structured.build import project
from models.structured.curves import error_curve
from models.structured.output_error import output_error
from models.structured.rectangle_choice import best_arc
from models.structured.sums_choice import choose_sum
from models.structures import BlockSparse, Gblr, Structure
from models.structures.sizes import CLOSED_KINDS, KINDS, Kind, saves

FEW = (0.4,)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(columns: int) -> Tensor:
    inputs = normal(60, columns, seed=9) * torch.linspace(0.3, 2, columns)
    return inputs.T @ inputs / 60


def measured(weight: Tensor, structure: Structure, second_moment: Tensor | None) -> float:
    generator = torch.Generator().manual_seed(5)
    layer = project(weight, structure, second_moment=second_moment, generator=generator)
    left = output_error(weight - layer.to_dense().detach(), second_moment)
    return float(left / output_error(weight, second_moment))


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_tells_what_a_projection_reaches(kind: Kind, aware: bool) -> None:
    rows, columns = (24, 20) if kind in CLOSED_KINDS else (10, 11)
    weight = normal(rows, columns)
    given = moment(columns) if aware else None
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    curve = error_curve(kind, weight, given, shares=FEW, generator=generator)
    assert torch.equal(generator.get_state(), before)
    costs = curve.macs if saves(kind) == "macs" else curve.parameters
    assert all(one <= other for one, other in pairwise([*costs.tolist(), rows * columns - 1]))
    for index in range(0, len(costs), max(1, len(costs) // 3)):
        structure = curve.structure(index)
        structure.check_fits(rows=rows, columns=columns)
        assert structure.mac_count(rows=rows, columns=columns) == curve.macs[index]
        assert structure.parameter_count(rows=rows, columns=columns) == curve.parameters[index]
        error, told = measured(weight, structure, given), float(curve.errors[index])
        if kind in CLOSED_KINDS:
            assert error <= told + 1e-6
        else:
            assert error == pytest.approx(told, abs=1e-6)


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


def test_the_best_arc_may_go_around_the_border() -> None:
    assert best_arc(torch.tensor([3.0, -1, -2, 2])) == (3, 2)
    assert best_arc(torch.tensor([-3.0, 1, 2, -2])) == (1, 2)
    assert best_arc(torch.tensor([-3.0, -1, -2])) == (1, 1)
    assert best_arc(torch.tensor([1.0, 1, 1])) == (0, 3)
