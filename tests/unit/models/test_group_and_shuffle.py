"""Group and shuffle: its formula, its density, and its recovery from a dense matrix."""

import math

import pytest
import torch
from torch import Tensor

from models.structured import GroupAndShuffleLinear
from models.structured.build import build_layer, project
from models.structured.rotations import cayley, inverse_cayley, nearest_rotation
from models.structures import GroupAndShuffle


def drawn(structure: GroupAndShuffle, rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    layer = build_layer(
        structure, rows=rows, columns=columns, generator=generator, dtype=torch.float64
    )
    return layer.to_dense().detach()


def shuffle(groups: int, side: int) -> Tensor:
    """P as the paper defines it: entry i goes to (i mod groups) side / groups + i // groups."""
    found = torch.zeros(side, side).double()
    for entry in range(side):
        found[entry % groups * (side // groups) + entry // groups, entry] = 1
    return found


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("factors", [2, 3])
def test_it_is_the_papers_product(factors: int, orthogonal: bool) -> None:
    structure = GroupAndShuffle(groups=3, factors=factors, orthogonal=orthogonal)
    generator = torch.Generator().manual_seed(0)
    layer = build_layer(structure, rows=12, columns=12, generator=generator, dtype=torch.float64)
    assert isinstance(layer, GroupAndShuffleLinear)
    permutation = shuffle(3, 12)
    first, *others = (torch.block_diag(*blocks) for blocks in layer.factors())
    expected = first
    for factor in others:
        expected = factor @ permutation @ expected
    torch.testing.assert_close(layer.to_dense(), permutation.T @ expected)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_it_is_dense_from_as_many_factors_as_the_paper_says(groups: int) -> None:
    side = 16
    block = side // groups
    enough = 1 + math.ceil(math.log(groups, block))
    dense = drawn(GroupAndShuffle(groups=groups, factors=max(2, enough)), side, side)
    assert (dense != 0).all()
    if enough > 2:
        sparse = drawn(GroupAndShuffle(groups=groups, factors=enough - 1), side, side)
        assert (sparse == 0).any()


@pytest.mark.parametrize("factors", [2, 3])
def test_rotations_keep_every_length(factors: int) -> None:
    structure = GroupAndShuffle(groups=4, factors=factors, orthogonal=True)
    found = drawn(structure, 20, 20)
    torch.testing.assert_close(found.T @ found, torch.eye(20).double())
    isometry = drawn(structure, 20, 7)
    torch.testing.assert_close(isometry.T @ isometry, torch.eye(7).double())
    layer = project(found + 0.1, structure)
    projected = layer.to_dense().detach()
    torch.testing.assert_close(projected.T @ projected, torch.eye(20).double())


def test_rotations_that_are_all_zero_are_the_identity() -> None:
    """Where fine-tuning of a trained matrix by a factor starts."""
    structure = GroupAndShuffle(groups=4, orthogonal=True)
    layer = GroupAndShuffleLinear(structure, rows=20, columns=20)
    torch.testing.assert_close(layer.to_dense().detach(), torch.eye(20))


def test_a_rotation_has_half_the_numbers() -> None:
    square = {"rows": 64, "columns": 64}
    free = GroupAndShuffle(groups=8).parameter_count(**square)
    rotations = GroupAndShuffle(groups=8, orthogonal=True)
    assert free == 2 * 64 * 8
    assert rotations.parameter_count(**square) == 2 * 8 * 28
    assert rotations.mac_count(**square) == free


@pytest.mark.parametrize(("rows", "columns", "groups"), [(24, 24, 4), (20, 31, 3), (9, 50, 6)])
def test_planted_factors_are_found(rows: int, columns: int, groups: int) -> None:
    weight = drawn(GroupAndShuffle(groups=groups), rows, columns)
    found = project(weight, GroupAndShuffle(groups=groups)).to_dense().detach()
    torch.testing.assert_close(found, weight)


@pytest.mark.parametrize("seed", range(8))
def test_planted_rotations_are_found(seed: int) -> None:
    structure = GroupAndShuffle(groups=4, orthogonal=True)
    weight = drawn(structure, 24, 24, seed)
    found = project(weight, structure).to_dense().detach()
    torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-6)


def test_the_cayley_map_is_inverted_even_near_half_a_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(50, 5, 5, generator=generator, dtype=torch.float64)
    rotations = nearest_rotation(matrices)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(50).double())
    again = cayley(inverse_cayley(rotations, generator), 5)
    torch.testing.assert_close(again, rotations, rtol=1e-6, atol=1e-6)
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    torch.testing.assert_close(
        cayley(inverse_cayley(half, generator), 3), half, rtol=1e-3, atol=1e-3
    )
