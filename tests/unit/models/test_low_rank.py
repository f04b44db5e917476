"""Low rank: one decomposition serves every rank."""

import pytest
import torch

from models.structured.build import project
from models.structured.low_rank import DAMPING, decompose, error_curve, factors
from models.structured.output_error import output_error, regularised
from models.structures import LowRank


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def moment(columns: int) -> torch.Tensor:
    inputs = drawn(50, columns) * torch.linspace(0.1, 3, columns, dtype=torch.float64)
    return inputs.T @ inputs / 50


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
    assert error_curve(torch.zeros(3, 4)).errors.tolist() == [0, 0, 0]
    assert all(factor.isfinite().all() for factor in factors(torch.zeros(3, 4), 2))


def test_a_second_moment_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="second_moment is indefinite"):
        factors(drawn(7, 10), 2, torch.full((10, 10), torch.nan))


def test_a_second_moment_summed_in_single_precision_may_be_singular() -> None:
    inputs = drawn(5, 200).float() * 1e3
    row_factor, column_factor = factors(drawn(30, 200), 3, inputs.T @ inputs / 5)
    assert row_factor.isfinite().all()
    assert column_factor.isfinite().all()


def answer_error(
    difference: torch.Tensor, second_moment: torch.Tensor, curvature: torch.Tensor
) -> float:
    """tr(G D C D^T), with G as damped as the decomposition takes it."""
    product = regularised(curvature, DAMPING) @ difference @ regularised(second_moment)
    return float((product * difference).sum())


def test_with_a_curvature_every_rank_is_the_best_for_the_answers() -> None:
    """By Eckart and Young: the root of each moment is taken from its eigenvectors here."""
    weight, second_moment, curvature = drawn(9, 12), moment(12), moment(9)
    whole = decompose(weight, second_moment, curvature)
    roots = []
    for square in (regularised(curvature, DAMPING), regularised(second_moment)):
        values, vectors = torch.linalg.eigh(square)
        roots.append(vectors * values.sqrt() @ vectors.T)
    energies = torch.linalg.svdvals(roots[0] @ weight @ roots[1]).square()
    torch.testing.assert_close(whole.energies, energies)
    for rank in range(10):
        kept = whole.row_factor[:, :rank] @ whole.column_factor[:rank]
        error = answer_error(weight - kept, second_moment, curvature)
        assert error == pytest.approx(float(energies[rank:].sum()), rel=1e-6, abs=1e-9)


def test_with_a_curvature_no_other_terms_are_better_for_the_answers() -> None:
    weight, second_moment, curvature = drawn(9, 12), moment(12), moment(9)
    noise = torch.Generator().manual_seed(8)
    whole = decompose(weight, second_moment, curvature)
    one_sided = [decompose(weight), decompose(weight, second_moment)]
    for rank in range(1, 9):
        best = answer_error(
            weight - whole.row_factor[:, :rank] @ whole.column_factor[:rank],
            second_moment,
            curvature,
        )
        rivals = [d.row_factor[:, :rank] @ d.column_factor[:rank] for d in one_sided]
        for size in (1e-3, 0.1, 1.0):
            rows, columns = (
                factor + size * torch.randn(factor.shape, generator=noise, dtype=torch.float64)
                for factor in (whole.row_factor[:, :rank], whole.column_factor[:rank])
            )
            rivals.append(rows @ columns)
        errors = [answer_error(weight - rival, second_moment, curvature) for rival in rivals]
        assert best < min(errors)
        assert best < 0.9 * errors[0]


def test_a_curvature_that_knows_nothing_changes_no_term() -> None:
    weight, second_moment = drawn(7, 10), moment(10)
    one_sided = decompose(weight, second_moment)
    white = decompose(weight, second_moment, torch.eye(7, dtype=torch.float64))
    for rank in range(1, 8):
        one, other = (d.row_factor[:, :rank] @ d.column_factor[:rank] for d in (one_sided, white))
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(white.energies, (1 + DAMPING) * one_sided.energies)
    explicit = decompose(weight, second_moment, None)
    assert torch.equal(explicit.row_factor, one_sided.row_factor)
    assert torch.equal(explicit.energies, one_sided.energies)


def test_a_second_moment_that_was_changed_is_regularised_again() -> None:
    given = moment(6)
    first = regularised(given)
    assert regularised(given) is first
    given[0, 0] += 1
    assert regularised(given)[0, 0] == pytest.approx(float(first[0, 0]) + 1, rel=1e-5)


def test_a_curve_gives_its_best_size_within_a_cost_and_says_where_it_begins() -> None:
    curve = error_curve(drawn(6, 9))
    assert curve.best_within(3 * 15 + 14) == LowRank(rank=3)
    with pytest.raises(ValueError, match="macs is 14, but this curve admits 15 and more"):
        curve.best_within(14)


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(0, 4), torch.ones(2, 2).long()])
def test_what_is_no_matrix_is_refused(weight: torch.Tensor) -> None:
    for ask in (error_curve, lambda matrix: project(matrix, LowRank(rank=1))):
        with pytest.raises(ValueError, match="a projection admits matrices of real numbers"):
            ask(weight)
