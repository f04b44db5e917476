"""Compact SVDs between orthonormal frames, whole (SVDP) and as tensor trains (STTP)."""

from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.structured import SttpLinear, SvdpLinear
from models.structured.build import build_layer, project
from models.structured.frames import frame, frame_numbers, log_spectrum_penalty, random_frame
from models.structured.low_rank import LowRankLinear
from models.structures import LowRank, Structure, Sttp, Svdp
from models.structures.frames import Spectrum, frame_size

TRAIN = Sttp(rank=6, inner_rank=5, row_modes=(4, 3, 4), column_modes=(4, 4, 4, 2))
ROWS, COLUMNS = 48, 128


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spectral(
    structure: Structure, rows: int = ROWS, columns: int = COLUMNS
) -> SttpLinear | SvdpLinear:
    layer = build_layer(
        structure, rows=rows, columns=columns, generator=generator(), dtype=torch.float64
    )
    assert isinstance(layer, SttpLinear | SvdpLinear)
    if layer.singular_values is not None:
        torch.nn.init.normal_(layer.singular_values, generator=generator(1))
    return layer


def relative_error(found: Tensor, weight: Tensor) -> float:
    return float((found - weight).detach().norm() / weight.norm())


@pytest.mark.parametrize("reduced", [False, True])
@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_a_frame_is_stored_in_as_many_numbers_as_its_manifold_has_dimensions(
    reduced: bool, first: int, second: int, seed: int
) -> None:
    length, rank = max(first, second), min(first, second)
    basis = random_frame(length, rank, generator(seed))
    numbers = frame_numbers(basis, reduced=reduced)
    assert len(numbers) == frame_size(length=length, rank=rank, reduced=reduced)
    found = frame(numbers, length=length, rank=rank, reduced=reduced)
    turn = found.T @ basis
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(found.T @ found, identity)
    torch.testing.assert_close(turn.T @ turn, identity)  # the same space
    if not reduced:
        torch.testing.assert_close(turn.abs(), identity)  # the same columns, but for signs


def test_the_reflections_are_lapacks() -> None:
    packed = torch.randn(9, 4, generator=generator(), dtype=torch.float64)
    row, column = torch.tril_indices(4, 4, -1)
    numbers = torch.cat([packed[row, column], packed[4:].flatten()])
    scales = 2 / (1 + packed.tril(-1).square().sum(0))
    expected = torch.linalg.householder_product(packed, scales)
    found = frame(numbers, length=9, rank=4, reduced=False)
    torch.testing.assert_close(found, expected)


def test_what_is_stored_is_the_dimension_of_the_manifold() -> None:
    def count(structure: Structure) -> int:
        return structure.parameter_count(rows=ROWS, columns=COLUMNS)

    r, sides = 7, ROWS + COLUMNS
    assert count(Svdp(rank=r)) == r * sides - r**2
    assert count(Svdp(rank=r, spectrum="unit")) == r * sides - r * (3 * r + 1) // 2
    # One train from the first digit of the rows over the singular values to that of the columns.
    modes = [4, 3, 4, 2, 4, 4, 4]
    ranks = [1, 4, 5, 6, 5, 5, 4, 1]
    cores = sum(prod(pair) * mode for pair, mode in zip(pairwise(ranks), modes, strict=True))
    assert count(TRAIN) == cores - sum(rank**2 for rank in ranks[1:-1])
    unit = TRAIN.model_copy(update={"spectrum": "unit"})
    assert count(unit) == count(TRAIN) - 6 * 7 // 2


@pytest.mark.parametrize("structure", [TRAIN, Svdp(rank=6)], ids=["train", "whole"])
def test_one_input_more_takes_the_counted_macs(structure: Structure) -> None:
    layer = spectral(structure)

    def flops(inputs: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer.product(torch.zeros(inputs, COLUMNS, dtype=torch.float64))
        return int(counter.get_total_flops())

    assert flops(6) - flops(5) == 2 * structure.mac_count(rows=ROWS, columns=COLUMNS)


def test_a_train_is_contracted_where_that_is_cheaper_than_its_frame() -> None:
    modes = (4, 4, 4, 4, 3)
    train = Sttp(rank=32, inner_rank=16, row_modes=modes, column_modes=modes)
    sides = {"rows": 768, "columns": 768}
    # All cores but the last are merged, and reach rank 16; the last leads from 3 times that to 32.
    assert train.mac_count(**sides) == 2 * (768 * 16 + 3 * 16 * 32)
    assert train.mac_count(**sides) < LowRank(rank=32).mac_count(**sides)
    small = Sttp(rank=4, inner_rank=16, row_modes=modes, column_modes=modes)
    assert small.mac_count(**sides) == LowRank(rank=4).mac_count(**sides)


@pytest.mark.parametrize("spectrum", ["free", "bounded", "unit"])
@pytest.mark.parametrize("aware", [False, True])
def test_a_planted_train_without_padding_is_found(spectrum: Spectrum, aware: bool) -> None:
    structure = TRAIN.model_copy(update={"spectrum": spectrum})
    weight = spectral(structure).to_dense().detach()
    x = torch.randn(256, COLUMNS, generator=generator(), dtype=torch.float64)
    moment = x.T @ x / len(x) if aware else None
    found = project(weight, structure, second_moment=moment)
    assert relative_error(found.to_dense(), weight) < 1e-6


def test_a_planted_train_is_found_by_one_half_larger() -> None:
    weight = spectral(TRAIN).to_dense().detach()
    larger = TRAIN.model_copy(update={"rank": 8, "inner_rank": 6})
    sides = {"rows": ROWS, "columns": COLUMNS}
    assert larger.parameter_count(**sides) <= 1.5 * TRAIN.parameter_count(**sides)
    assert relative_error(project(weight, larger).to_dense(), weight) < 1e-6


def test_a_compact_svd_is_the_best_low_rank_matrix_with_fewer_numbers() -> None:
    weight = torch.randn(ROWS, COLUMNS, generator=generator(), dtype=torch.float64)
    x = torch.randn(60, COLUMNS, generator=generator(), dtype=torch.float64)
    for moment in (None, x.T @ x / len(x)):
        expected = project(weight, LowRank(rank=9), second_moment=moment).to_dense()
        found = project(weight, Svdp(rank=9), second_moment=moment).to_dense()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("structure", [TRAIN, Svdp(rank=6)], ids=["train", "whole"])
def test_a_bounded_spectrum_bounds_the_norm_by_one(structure: Structure) -> None:
    bounded = structure.model_copy(update={"spectrum": "bounded"})
    layer = spectral(bounded)
    assert layer.singular_values is not None
    torch.nn.init.constant_(layer.singular_values, -7.0)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.to_dense(), 2).item(), 1.0)
    weight = 3 * torch.randn(ROWS, COLUMNS, generator=generator(), dtype=torch.float64)
    found = project(weight, bounded).to_dense()
    assert torch.linalg.matrix_norm(found, 2) <= 1 + 1e-9


def test_a_unit_spectrum_of_full_rank_is_an_orthogonal_matrix() -> None:
    layer = spectral(Svdp(rank=24, spectrum="unit"), 24, 24)
    dense = layer.to_dense()
    torch.testing.assert_close(dense @ dense.T, torch.eye(24, dtype=torch.float64))


def test_the_nearest_isometry_is_the_polar_factor() -> None:
    weight = torch.randn(ROWS, COLUMNS, generator=generator(), dtype=torch.float64)
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    found = project(weight, Svdp(rank=ROWS - 1, spectrum="unit")).to_dense()
    torch.testing.assert_close(found, left[:, :-1] @ right[:-1])


def test_thin_factors_make_a_low_rank_layer() -> None:
    layer = spectral(TRAIN)
    found = LowRankLinear.from_factors(*layer.thin_factors(), bias=layer.bias)
    x = torch.randn(3, COLUMNS, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(found(x), layer(x))


def test_a_flat_spectrum_is_free_of_penalty() -> None:
    assert log_spectrum_penalty(torch.tensor([-2.0, 2.0])) == 0
    falling = torch.tensor([1.0, 0.1], requires_grad=True)
    penalty = log_spectrum_penalty(falling)
    penalty.backward()
    assert penalty.item() == pytest.approx(-torch.tensor(0.1).log().item() / 2)
    assert falling.grad is not None
    assert falling.grad[1] < 0  # descent raises the small singular value


def test_a_sum_of_waves_is_a_train_far_smaller_than_its_low_rank_form() -> None:
    """Exponentials are separable over the digits of their index; low rank cannot know that."""
    rows, columns = torch.arange(ROWS).double() / ROWS, torch.arange(COLUMNS).double() / COLUMNS
    waves = torch.tensor([1.0, 3.0, 7.0, 12.0], dtype=torch.float64)
    weight = torch.cos(2 * torch.pi * waves[:, None, None] * (rows[:, None] + columns)).sum(0)
    structure = TRAIN.model_copy(update={"rank": 8, "inner_rank": 8})
    sides = {"rows": ROWS, "columns": COLUMNS}
    low_rank = LowRank(rank=8)
    assert relative_error(project(weight, low_rank).to_dense(), weight) < 1e-6
    assert relative_error(project(weight, structure).to_dense(), weight) < 1e-6
    assert structure.parameter_count(**sides) < 0.6 * low_rank.parameter_count(**sides)
