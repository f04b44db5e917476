"""Low rank: one decomposition serves every rank."""

import pytest
import torch

from models.spec import LowRank
from models.structured.build import project
from models.structured.low_rank import decompose, error_curve, factors
from models.structured.output_error import output_error


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def moment(columns: int) -> torch.Tensor:
    inputs = drawn(50, columns) * torch.linspace(0.1, 3, columns, dtype=torch.float64)
    return inputs.T @ inputs / 50


@pytest.mark.parametrize("aware", [False, True])
def test_the_error_curve_is_every_rank_s_relative_error(aware: bool) -> None:
    weight, second_moment = drawn(7, 10), moment(10) if aware else None
    curve = error_curve(weight, second_moment)
    assert curve.shape == (8,)
    assert curve[0] == 1
    assert curve[-1] == 0
    whole = output_error(weight, second_moment)
    for rank in range(1, 8):
        layer = project(weight, LowRank(rank=rank), second_moment=second_moment)
        error = output_error(weight - layer.to_dense(), second_moment) / whole
        torch.testing.assert_close(error.detach(), curve[rank], rtol=1e-4, atol=1e-6)


def test_a_data_aware_factorisation_beats_the_plain_one_where_it_counts() -> None:
    weight, second_moment = drawn(20, 30), moment(30)
    errors = [
        output_error(weight - torch.matmul(*factors(weight, 4, given)), second_moment)
        for given in (None, second_moment)
    ]
    assert errors[1] < 0.9 * errors[0]


def test_both_factors_of_a_term_have_the_same_norm() -> None:
    whole = decompose(drawn(6, 9), moment(9))
    torch.testing.assert_close(whole.row_factor.norm(dim=0), whole.column_factor.norm(dim=1))
    assert whole.energies.diff().le(0).all()


def test_a_zero_matrix_has_no_error_and_finite_factors() -> None:
    assert error_curve(torch.zeros(3, 4)).tolist() == [0, 0, 0, 0]
    assert all(factor.isfinite().all() for factor in factors(torch.zeros(3, 4), 2))


def test_a_second_moment_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="second_moment holds what no finite inputs can have"):
        factors(drawn(7, 10), 2, torch.full((10, 10), torch.nan))


def test_a_second_moment_summed_in_single_precision_may_be_singular() -> None:
    inputs = drawn(5, 200).float() * 1e3
    row_factor, column_factor = factors(drawn(30, 200), 3, inputs.T @ inputs / 5)
    assert row_factor.isfinite().all()
    assert column_factor.isfinite().all()
