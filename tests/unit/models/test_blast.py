"""What is special about BLAST: it contains low rank, and finds what low rank cannot."""

import pytest
import torch
from torch import Tensor

from models.structured.blast import BlastLinear
from models.structured.blast_fit import solve
from models.structured.build import build_layer, project
from models.structured.output_error import output_error
from models.structures import Blast, LowRank


def relative_error(weight: Tensor, found: Tensor, second_moment: Tensor | None = None) -> float:
    error = output_error(weight - found, second_moment) / output_error(weight, second_moment)
    return float(error.detach().sqrt())


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def planted(rows: int, columns: int, *, blocks: int, rank: int, seed: int) -> Tensor:
    layer = BlastLinear(
        Blast(blocks=blocks, rank=rank), rows=rows, columns=columns, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(seed)
    layer.reset_parameters(generator)
    return layer.to_dense().detach()


def decaying(rows: int, columns: int) -> Tensor:
    """Singular values i^(-1/2) in random directions."""
    smaller = min(rows, columns)
    left = torch.linalg.qr(normal(rows, smaller)).Q
    right = torch.linalg.qr(normal(columns, smaller, seed=1)).Q
    singular: Tensor = torch.arange(1, smaller + 1).double().rsqrt()
    found: Tensor = left * singular @ right.T
    return found


@pytest.mark.parametrize(
    ("rows", "columns", "blocks", "rank"), [(64, 64, 4, 4), (128, 96, 4, 8), (96, 96, 8, 4)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_matrix_is_found_with_half_as_much_rank_again(
    rows: int, columns: int, blocks: int, rank: int, seed: int
) -> None:
    weight = planted(rows, columns, blocks=blocks, rank=rank, seed=seed)
    found = project(weight, Blast(blocks=blocks, rank=rank * 3 // 2)).to_dense()
    assert relative_error(weight, found) < 1e-2


def test_what_has_the_rank_is_found_exactly() -> None:
    weight = normal(20, 5) @ normal(5, 31, seed=1)
    found = project(weight, Blast(blocks=3, rank=5)).to_dense()
    assert relative_error(weight, found) < 1e-6


@pytest.mark.parametrize(("rows", "columns"), [(7, 11), (11, 7), (8, 8)])
def test_at_the_largest_rank_every_matrix_is_found(rows: int, columns: int) -> None:
    weight = normal(rows, columns)
    found = project(weight, Blast(blocks=3, rank=min(rows, columns))).to_dense()
    assert relative_error(weight, found) < 1e-6


def test_at_equal_cost_it_is_nearer_than_low_rank() -> None:
    weight = decaying(96, 160)
    sides = {"rows": 96, "columns": 160}
    blast, low_rank = Blast(blocks=4, rank=17), LowRank(rank=19)
    assert blast.mac_count(**sides) <= low_rank.mac_count(**sides)
    errors = [relative_error(weight, project(weight, one).to_dense()) for one in (blast, low_rank)]
    assert errors[0] < 0.98 * errors[1]


def test_given_the_inputs_it_is_nearer_in_the_output() -> None:
    weight = normal(32, 48)
    inputs = normal(400, 48, seed=1) * torch.arange(1, 49) ** -0.7 @ normal(48, 48, seed=2)
    moment = inputs.T @ inputs / len(inputs)
    structure = Blast(blocks=4, rank=6)
    plain, aware = (
        relative_error(weight, project(weight, structure, second_moment=known).to_dense(), moment)
        for known in (None, moment)
    )
    assert aware < 0.5 * plain
    low_rank = project(weight, LowRank(rank=6), second_moment=moment).to_dense()
    assert aware < relative_error(weight, low_rank, moment)


def test_a_matrix_of_zeros_is_found() -> None:
    found = project(torch.zeros(6, 9), Blast(blocks=2, rank=3)).to_dense()
    assert torch.equal(found, torch.zeros(6, 9))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_a_matrix_does_not_matter(scale: float) -> None:
    weight = normal(12, 18)
    structure = Blast(blocks=3, rank=4)
    found = project(weight, structure).to_dense()
    scaled = project(weight * scale, structure).to_dense()
    torch.testing.assert_close(scaled / scale, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [12, 13])
def test_the_product_is_the_same_with_and_without_a_graph(bias: bool, rows: int) -> None:
    layer = build_layer(
        Blast(blocks=4, rank=5),
        rows=rows,
        columns=18,
        bias=bias,
        generator=torch.Generator().manual_seed(0),
    )
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, 18)
    with torch.no_grad():
        quick = layer(x)
    torch.testing.assert_close(quick, layer(x).detach())
    assert quick.shape == (3, 5, rows)


def test_singular_systems_are_solved_and_what_is_not_finite_is_refused() -> None:
    assert solve(torch.zeros(2, 3, 3), torch.ones(2, 3, 1)).isfinite().all()
    system = torch.ones(1, 3, 3)
    found = solve(system, system[..., :1])
    torch.testing.assert_close(system @ found, system[..., :1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ArithmeticError, match="the least-squares systems of a BLAST are not"):
        solve(torch.full((1, 3, 3), torch.nan), torch.ones(1, 3, 1))
