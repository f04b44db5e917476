"""Tensor trains: planted members, contraction orders and what two modes have in common."""

from math import prod

import pytest
import tensorly
import torch

from models.structured.build import build_layer, project
from models.structures import Kronecker, TensorTrain


def planted(structure: TensorTrain, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    layer = build_layer(structure, rows=rows, columns=columns, generator=generator)
    return layer.to_dense().detach()


def test_a_planted_train_is_recovered_in_single_precision() -> None:
    structure = TensorTrain(row_modes=(4, 6, 4), column_modes=(8, 3, 4), ranks=(5, 3))
    weight = planted(structure, 96, 96)
    found = project(weight, structure).to_dense().detach()
    assert (weight - found).norm() / weight.norm() < 1e-4


def test_a_train_of_two_cores_is_a_sum_of_kronecker_products() -> None:
    train = TensorTrain(row_modes=(4, 6), column_modes=(8, 3), ranks=(2,))
    kronecker = Kronecker(terms=2, block_rows=6, block_columns=3)
    weight = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)).double()
    assert train.mac_count(rows=24, columns=24) == kronecker.mac_count(rows=24, columns=24)
    torch.testing.assert_close(
        project(weight, train).to_dense().detach(), project(weight, kronecker).to_dense().detach()
    )


@pytest.mark.parametrize(
    ("row_modes", "column_modes", "macs"),
    [
        # As opt-einsum's optimal path takes, too.
        ((8, 12, 8), (16, 12, 16), 442368),
        ((32, 2, 2), (2, 2, 32), 2304),
        ((2, 2, 32), (32, 2, 2), 2304),
    ],
)
def test_a_sweep_begins_where_it_takes_least(
    row_modes: tuple[int, ...], column_modes: tuple[int, ...], macs: int
) -> None:
    train = TensorTrain(row_modes=row_modes, column_modes=column_modes, ranks=(4, 4))
    assert train.mac_count(rows=prod(row_modes), columns=prod(column_modes)) == macs


def test_lengths_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="2 row_modes need as many column_modes and one rank less"):
        TensorTrain(row_modes=(2, 2), column_modes=(2, 2), ranks=(1, 1))


def test_a_train_is_fitted_whatever_backend_tensorly_was_given() -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    structure = TensorTrain(row_modes=(3, 4), column_modes=(4, 5), ranks=(3,))
    expected = project(weight, structure).to_dense()
    with tensorly.backend_context("pytorch"):
        torch.testing.assert_close(project(weight, structure).to_dense(), expected)
        assert tensorly.get_backend() == "pytorch"
