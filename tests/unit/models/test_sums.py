"""Sums find what each of their parts alone cannot."""

import pytest
import torch
from torch import Tensor

from models.structured.build import build_layer, project
from models.structured.output_error import output_error
from models.structures import (
    BlockDiagonal,
    BlockSparse,
    Butterfly,
    Circulant,
    Diagonals,
    LowDisplacementRank,
    LowRank,
    Structure,
    Sum,
    Svdp,
)
from models.structures.sums import Part

TILES = BlockSparse(tile=6, positions=((0, 0), (0, 4), (2, 3), (5, 1), (7, 5)))
WITH_BLOCKS = Sum(parts=(LowRank(rank=3), BlockDiagonal(blocks=6)))


def drawn(structure: Structure, *, rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    layer = build_layer(
        structure, rows=rows, columns=columns, generator=generator, dtype=torch.float64
    )
    return layer.to_dense().detach()


def moment(columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(200, columns, generator=generator, dtype=torch.float64)
    inputs *= torch.linspace(0.2, 3, columns)
    return inputs.T @ inputs / 200


def relative_error(weight: Tensor, found: Tensor, second_moment: Tensor | None = None) -> float:
    error = output_error(weight - found, second_moment) / output_error(weight, second_moment)
    return float(error.detach().sqrt())


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "structure",
    [
        WITH_BLOCKS,
        Sum(parts=(BlockDiagonal(blocks=4), LowRank(rank=5))),
        Sum(parts=(LowRank(rank=5), TILES)),
        Sum(parts=(LowRank(rank=4), Diagonals(offsets=(-2, 0, 7), entries=((3, 30), (20, 1))))),
    ],
    ids=Sum.in_words,
)
def test_a_planted_sum_is_found(structure: Sum, seed: int, aware: bool) -> None:
    weight = drawn(structure, rows=48, columns=36, seed=seed)
    known = moment(36) if aware else None
    found = project(weight, structure, second_moment=known).to_dense()
    assert relative_error(weight, found, known) < 1e-4


def test_a_large_matrix_is_found_by_the_same_law() -> None:
    """Its low rank comes from a Gram matrix."""
    structure = Sum(parts=(LowRank(rank=6), BlockDiagonal(blocks=32)))
    weight = drawn(structure, rows=512, columns=512, seed=0)
    assert relative_error(weight, project(weight, structure).to_dense()) < 1e-4


def test_both_orders_of_the_parts_are_one_sum() -> None:
    weight = drawn(LowRank(rank=30), rows=40, columns=30, seed=1)
    errors = [
        relative_error(weight, project(weight, Sum(parts=parts)).to_dense())
        for parts in (WITH_BLOCKS.parts, WITH_BLOCKS.parts[::-1])
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_a_sum_is_nearer_than_either_part_alone() -> None:
    weight = drawn(LowRank(rank=30), rows=40, columns=30, seed=1)
    together, *alone = (
        relative_error(weight, project(weight, one).to_dense())
        for one in (WITH_BLOCKS, *WITH_BLOCKS.parts)
    )
    assert together < 0.95 * min(alone)


def test_every_part_takes_its_share_of_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = build_layer(WITH_BLOCKS, rows=256, columns=256, generator=generator)
    with torch.no_grad():
        x = torch.randn(4000, 256, generator=generator)
        for part in layer.get_submodule("parts").children():
            assert 0.35 < part(x).square().mean() < 0.65


@pytest.mark.parametrize(
    "part", [LowDisplacementRank(rank=1), Butterfly(blocks=40), Circulant(), Svdp(rank=8)]
)
def test_a_product_of_many_factors_can_take_its_share_of_the_variance(part: Part) -> None:
    generator = torch.Generator().manual_seed(0)
    structure = Sum(parts=(part, LowRank(rank=4)))
    layer = build_layer(structure, rows=64, columns=64, generator=generator)
    x = torch.randn(4000, 64, generator=generator)
    assert 0.8 < layer(x).detach().square().mean() < 1.2


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_parts_are_no_sum(number: int) -> None:
    with pytest.raises(ValueError, match="at least 2 items"):
        Sum(parts=(LowRank(rank=1),) * number)


def test_a_sum_of_sums_is_refused() -> None:
    with pytest.raises(ValueError, match="sum"):
        Sum.model_validate({"parts": [WITH_BLOCKS.model_dump(), {"kind": "dense"}]})
