"""Circulant, Toeplitz-like and low-displacement-rank matrices, against their definitions."""

import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.structured import (
    CirculantLinear,
    LowDisplacementRankLinear,
    StructuredLinear,
    ToeplitzLikeLinear,
)
from models.structured.build import build_layer, project
from models.structured.displacement_operators import searched
from models.structured.low_displacement_fit import settled, with_derivatives
from models.structured.output_error import output_error
from models.structured.weighted_shifts import applied, krylov
from models.structures import (
    BlockDiagonal,
    Circulant,
    LowDisplacementRank,
    LowRank,
    Structure,
    ToeplitzLike,
)
from models.structures.fourier import is_smooth, smooth_length


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def drawn(structure: Structure, rows: int, columns: int) -> StructuredLinear:
    return build_layer(
        structure, rows=rows, columns=columns, generator=generator(), dtype=torch.float64
    )


def relative_error(layer: StructuredLinear, weight: Tensor) -> float:
    return float((layer.to_dense().detach() - weight).norm() / weight.norm())


def moment_of(columns: int) -> Tensor:
    x = normal(3 * columns, columns, seed=5)
    return x.T @ x / len(x)


def shift(size: int, sign: int) -> Tensor:
    """The cyclic shift down, its corner times a sign."""
    found = torch.eye(size, dtype=torch.float64).roll(1, 0)
    found[0] *= sign
    return found


@given(st.integers(1, 10**12))
def test_a_smooth_length_is_the_next_that_scipy_finds(least: int) -> None:
    found = smooth_length(least)
    assert found == scipy.fft.next_fast_len(least, real=True)
    assert is_smooth(found)


@pytest.mark.parametrize("size", [1, 16, 29, 48])
@pytest.mark.parametrize("aware", [False, True])
def test_a_circulant_matrix_is_represented(size: int, aware: bool) -> None:
    column = normal(size)
    weight = torch.from_numpy(scipy.linalg.circulant(column.numpy()))
    moment = moment_of(size) if aware else None
    layer = project(weight.float(), Circulant(), second_moment=moment)
    assert isinstance(layer, CirculantLinear)
    torch.testing.assert_close(layer.first_column.detach(), column.float())
    x = normal(5, size, seed=1)
    torch.testing.assert_close(layer(x.float()).double(), x @ weight.T, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None)
def test_a_circulant_fit_to_outputs_is_the_least_squares_solution(
    rows: int, columns: int, seed: int
) -> None:
    weight, moment = normal(rows, columns, seed=seed), moment_of(columns)
    layer = project(weight, Circulant(), second_moment=moment)
    output_error(weight - layer.to_dense(), moment).backward()
    assert isinstance(layer, CirculantLinear)
    assert layer.first_column.grad is not None
    assert layer.first_column.grad.abs().max() < 1e-5 * weight.abs().max()


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (13, 13), (5, 15), (15, 5), (1, 4)])
def test_a_toeplitz_like_matrix_has_a_displacement_of_its_rank(rows: int, columns: int) -> None:
    layer = drawn(ToeplitzLike(rank=1), rows, columns)
    assert isinstance(layer, ToeplitzLikeLinear)
    row_sign, column_sign = layer.signs
    up, right = shift(rows, row_sign), shift(columns, column_sign)
    dense = layer.to_dense()
    expected = up @ layer.row_generator.T @ layer.column_generator
    torch.testing.assert_close(up @ dense - dense @ right, expected)


@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (53, 53), (24, 96), (96, 24), (7, 7)])
@pytest.mark.parametrize("aware", [False, True])
def test_a_planted_toeplitz_like_matrix_is_found(rows: int, columns: int, aware: bool) -> None:
    weight = drawn(ToeplitzLike(rank=3), rows, columns).to_dense().detach()
    moment = moment_of(columns) if aware else None
    found = project(weight, ToeplitzLike(rank=3), second_moment=moment)
    assert relative_error(found, weight) < 1e-9


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_a_planted_toeplitz_like_matrix_is_found_by_one_half_larger_though_it_is_padded(
    rows: int, columns: int, seed: int
) -> None:
    layer = drawn(ToeplitzLike(rank=2), rows, columns)
    layer.reset_parameters(generator(seed))
    weight = layer.to_dense().detach()
    assert relative_error(project(weight, ToeplitzLike(rank=3)), weight) < 1e-6


def test_a_toeplitz_matrix_and_its_inverse_have_displacement_rank_two() -> None:
    weight = torch.from_numpy(scipy.linalg.toeplitz(normal(24).numpy(), normal(24, seed=1).numpy()))
    weight = weight + 9 * torch.eye(24)
    for matrix in (weight, torch.linalg.inv(weight)):
        assert relative_error(project(matrix, ToeplitzLike(rank=2)), matrix) < 1e-9
        assert relative_error(project(matrix, LowRank(rank=2)), matrix) > 0.5
        assert relative_error(project(matrix, BlockDiagonal(blocks=12)), matrix) > 0.1


@pytest.mark.parametrize("operators", ["subdiagonal", "tridiagonal"])
@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (4, 7), (8, 3)])
def test_learned_operators_make_the_sum_of_their_powers(
    operators: str, rows: int, columns: int
) -> None:
    structure = LowDisplacementRank.model_validate({"rank": 2, "operators": operators})
    layer = drawn(structure, rows, columns)
    assert isinstance(layer, LowDisplacementRankLinear)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator(3))

    def matrix(bands: Tensor) -> Tensor:
        identity = torch.eye(bands.shape[1], dtype=torch.float64)
        shifted = [identity.roll(1 - band, 0) for band in range(len(bands))]
        return sum(
            (band[:, None] * one for band, one in zip(bands, shifted, strict=True)), 0 * identity
        )

    left, right = matrix(layer.row_operator), matrix(layer.column_operator).T
    term = layer.row_generator.T @ layer.column_generator
    expected = torch.zeros_like(term)
    for _ in range(max(rows, columns)):
        expected = expected + term
        term = left @ term @ right
    torch.testing.assert_close(layer.to_dense(), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("operators", ["subdiagonal", "tridiagonal"])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (20, 15)])
def test_planted_learned_operators_are_found_with_half_as_many_terms_again(
    operators: str, rows: int, columns: int, seed: int
) -> None:
    """The relative error, not squared: of the best of the restarts."""
    sizes = {"operators": operators}
    layer = drawn(LowDisplacementRank.model_validate({"rank": 2, **sizes}), rows, columns)
    assert isinstance(layer, LowDisplacementRankLinear)
    with torch.no_grad():
        for turn, parameter in enumerate(layer.parameters()):
            noise = normal(*parameter.shape, seed=10 * seed + turn)
            is_operator = parameter is layer.row_operator or parameter is layer.column_operator
            parameter.copy_(parameter + 0.3 * noise if is_operator else noise)
    weight = layer.to_dense().detach()
    found = project(weight, LowDisplacementRank.model_validate({"rank": 3, **sizes}))
    assert relative_error(found, weight) < 1e-2


@given(st.integers(3, 9), st.integers(3, 9), st.sampled_from([1, 3]), st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_searched_operators_leave_as_much_of_the_displacement_as_is_told_and_no_more_than_before(
    rows: int, columns: int, bands: int, seed: int
) -> None:
    target = normal(rows, columns, seed=seed)
    first = normal(bands, rows, seed=seed + 1), normal(bands, columns, seed=seed + 2)

    def left_over(row: Tensor, column: Tensor) -> float:
        displacement = target - applied(column, applied(row, target).T).T
        return float(torch.linalg.svdvals(displacement)[2:].square().sum())

    row, column, told = searched(target, *first, 2)
    assert told == pytest.approx(left_over(row, column))
    assert told <= left_over(*first) * (1 + 1e-9)


def test_the_error_that_is_told_is_of_the_operators_that_are_given() -> None:
    target = normal(6, 5)
    shapes = (1, 6), (1, 5), (2, 6), (2, 5)
    tensors = [normal(*shape, seed=turn) for turn, shape in enumerate(shapes)]
    before = 1.0
    for steps in range(4):
        (row, column, left, right), error = settled(target, tensors, steps, 0.0)
        rest = krylov(row, left.T, 6) @ krylov(column, right.T, 6).T - target
        assert error == pytest.approx(float(rest.norm() / target.norm()) ** 2)
        assert steps == 0 or error < before
        before = error


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 1), (5, 8), (7, 4)])
def test_derivatives_by_operators_and_generators_are_those_of_their_matrix(
    bands: int, rows: int, columns: int
) -> None:
    shapes = (bands, rows), (bands, columns), (2, rows), (2, columns)
    tensors = tuple(normal(*shape, seed=turn) for turn, shape in enumerate(shapes))
    terms = max(rows, columns)

    def matrix(row: Tensor, column: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return krylov(row, left.T, terms) @ krylov(column, right.T, terms).T

    found, slopes = with_derivatives(*tensors)
    torch.testing.assert_close(found, matrix(*tensors))
    expected = torch.autograd.functional.jacobian(matrix, tensors)
    columns_of = [piece.reshape(rows * columns, -1).T for piece in expected]
    torch.testing.assert_close(slopes, torch.cat(columns_of))


def test_what_is_counted_grows_as_r_n_log_n() -> None:
    def macs(structure: Structure, size: int) -> int:
        return structure.mac_count(rows=size, columns=size)

    assert macs(Circulant(), 1024) == 3 * 1024 * 10 + 4 * 513
    assert macs(Circulant(), 1021) == 3 * 2048 * 11 + 4 * 1025  # a prime is folded from 2048
    pair = 3 * (1024 * 10 + 2048 * 11) // 2
    assert macs(ToeplitzLike(rank=3), 1024) == 4 * pair + 3 * 4 * (513 + 1025)
    sizes = {"rows": 1024, "columns": 1024}
    assert ToeplitzLike(rank=3).parameter_count(**sizes) == 2 * 1024 * 3
    learned = LowDisplacementRank(rank=3)
    assert learned.parameter_count(**sizes) == 2 * 1024 * (3 + 1)
    richer = LowDisplacementRank(rank=3, operators="tridiagonal")
    assert richer.parameter_count(**sizes) == 2 * 1024 * (3 + 3)
