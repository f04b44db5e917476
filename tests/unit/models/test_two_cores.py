"""Kronecker products and the einsum family: known points, costs and planted members."""

import pytest
import torch
from torch import Tensor

from models.structured import KroneckerLinear
from models.structured.build import build_layer, project
from models.structured.kronecker import error_curve
from models.structured.output_error import output_error
from models.structures import BlockDiagonal, Einsum, Kronecker, LowRank
from models.structures.einsum import NAMED_POINTS, PointName
from models.structures.factorisation import balanced_modes, split


def drawn(*shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def relative(weight: Tensor, found: Tensor) -> float:
    return float((weight - found.detach()).norm() / weight.norm())


def test_a_layer_of_one_term_is_the_kronecker_product() -> None:
    structure = Kronecker(terms=1, block_rows=3, block_columns=2)
    layer = KroneckerLinear(structure, rows=12, columns=10, dtype=torch.float64)
    grid, block = drawn(4, 5), drawn(3, 2, seed=4)
    layer.get_parameter("first").data.copy_(
        (grid if layer.indices.c == 5 else block)[None, None, None]
    )
    other = block if layer.indices.c == 5 else grid
    layer.get_parameter("second").data.copy_(other.T[None, None, :, None, :])
    torch.testing.assert_close(layer.to_dense().detach(), torch.kron(grid, block))


def test_a_planted_sum_of_kronecker_products_is_recovered() -> None:
    grids, blocks = drawn(3, 8, 12), drawn(3, 6, 4, seed=4)
    weight = torch.stack([torch.kron(*pair) for pair in zip(grids, blocks, strict=True)]).sum(0)
    structure = Kronecker(terms=3, block_rows=6, block_columns=4)
    assert relative(weight, project(weight, structure).to_dense()) < 1e-7
    curve = error_curve(weight, block_rows=6, block_columns=4)
    assert curve.errors[1] > 1e-2
    assert curve.errors[2] < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_product_in_a_matrix_that_its_blocks_overhang_is_recovered(seed: int) -> None:
    """Rows and columns are cut off: what stood there has to be guessed."""
    weight = torch.kron(drawn(5, 6, seed=seed), drawn(4, 5, seed=seed + 9))[:18, :28]
    structure = Kronecker(terms=1, block_rows=4, block_columns=5)
    assert relative(weight, project(weight, structure).to_dense()) < 1e-4


def test_a_product_of_few_numbers_works_more_than_it_stores() -> None:
    """Each cheaper order: the grid first, or the block first."""
    wide = Kronecker(terms=2, block_rows=32, block_columns=64)
    assert wide.parameter_count(rows=768, columns=3072) == 2 * (24 * 48 + 32 * 64)
    grid_first, block_first = 2 * 24 * 64 * (48 + 32), 2 * 48 * 32 * (64 + 24)
    assert wide.mac_count(rows=768, columns=3072) == min(grid_first, block_first)


def test_a_curve_of_outputs_has_every_number_of_terms_up_to_the_cost_of_dense() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 78, generator=generator, dtype=torch.float64)
    inputs = torch.randn(50, 78, generator=generator, dtype=torch.float64)
    moment = inputs.T @ inputs / 50
    curve = error_curve(weight, moment, block_rows=8, block_columns=10)
    found = [curve.structure(index) for index in range(len(curve.errors))]
    sizes = {"block_rows": 8, "block_columns": 10}
    assert found == [Kronecker(terms=count, **sizes) for count in range(1, len(found) + 1)]
    assert len(found) > 2
    assert int(curve.macs[-1]) <= weight.numel() < int(curve.macs[-1] + curve.macs[0])
    assert curve.errors.diff().lt(0).all()


def test_a_curve_takes_inputs_of_another_precision_than_the_weight() -> None:
    inputs, weight = drawn(40, 12), drawn(8, 12)
    moment = inputs.T @ inputs / 40
    sizes = {"block_rows": 2, "block_columns": 3}
    exact = error_curve(weight, moment, **sizes)
    found = error_curve(weight.float(), moment, **sizes)
    torch.testing.assert_close(found.errors, exact.errors, rtol=1e-4, atol=1e-5)


def test_seeing_the_inputs_lowers_the_error_of_the_outputs() -> None:
    inputs = drawn(200, 24) * torch.logspace(0, -2, 24, dtype=torch.float64)
    weight, moment = drawn(20, 24), inputs.T @ inputs / 200
    for structure in (
        Kronecker(terms=2, block_rows=4, block_columns=4),
        Einsum.at("Monarch"),
        Einsum.at("tensor train", rho=0.3),
    ):
        plain, aware = (
            output_error(
                weight - project(weight, structure, second_moment=given).to_dense(), moment
            )
            for given in (None, moment)
        )
        assert aware < 0.9 * plain, structure


@pytest.mark.parametrize(
    ("point", "rho", "omega", "psi", "nu"),
    [
        ("dense", 0, 0, 1, 1),
        ("low rank", 0.5, 0, 0.5, 0.5),
        ("Kronecker", 0, 0.5, 1, 0.5),
        ("tensor train", 0.25, 0.5, 1, 0.75),
        ("Monarch", 0, 0, 1, 0.5),
        ("BTT", 0.25, 0, 1, 0.75),
    ],
)
def test_the_papers_measures_of_the_named_points(
    point: PointName, rho: float, omega: float, psi: float, nu: float
) -> None:
    found = Einsum.at(point, rho=rho)
    assert (found.omega, found.psi, found.nu) == (omega, psi, nu)
    # The compute of large sides is what nu says.
    sides = {"rows": 2**16, "columns": 2**16}
    smaller = {"rows": 2**12, "columns": 2**12}
    growth = found.mac_count(**sides) / found.mac_count(**smaller)
    assert growth == pytest.approx(2 ** (4 * (1 + nu)), rel=0.01)


def test_named_points_cost_what_the_structures_of_that_name_do() -> None:
    sides = {"rows": 256, "columns": 256}
    assert Einsum.at("low rank", rho=0.5).mac_count(**sides) == LowRank(rank=16).mac_count(**sides)
    # A dense core, and one number that scales it.
    assert Einsum.at("dense").parameter_count(**sides) == 256**2 + 1
    # Two block-diagonal factors.
    monarch = 2 * BlockDiagonal(blocks=16).parameter_count(**sides)
    assert Einsum.at("Monarch").parameter_count(**sides) == monarch
    assert Einsum.at("Kronecker").parameter_count(**sides) == 2 * 256


@pytest.mark.parametrize("point", NAMED_POINTS)
def test_a_planted_member_of_the_einsum_family_is_recovered(point: PointName) -> None:
    structure = Einsum.at(point, rho=min(0.25, Einsum.at(point).most_rho))
    layer = build_layer(structure, rows=64, columns=144, generator=torch.Generator().manual_seed(0))
    weight = layer.to_dense().detach().double()
    assert relative(weight, project(weight, structure).to_dense()) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.7}, "alpha 0.7, beta 0, gamma 0.5 sum up to 1.2"),
        ({"phi": 0.4}, "phi 0.4 sum up to 0.9"),
        ({"rho": 0.75}, "rho is 0.75, but these exponents admit 0 to 0.5"),
        ({"alpha": -0.5, "beta": 1}, "greater than or equal to 0"),
        ({"alpha": 1.5, "gamma": -0.5}, "less than or equal to 1"),
    ],
)
def test_exponents_that_make_no_matrix_are_refused(change: dict[str, float], message: str) -> None:
    fields = Einsum.at("BTT").model_dump() | change
    with pytest.raises(ValueError, match=message):
        Einsum.model_validate(fields)


def test_a_side_is_split_where_it_divides_else_padded_a_little() -> None:
    assert balanced_modes(768, 2) == (24, 32)
    assert balanced_modes(768, 3) == (8, 8, 12)
    assert split(3072, (0, 1, 0)) == (1, 3072, 1)
    # A prime: 14 x 14 are the fewest steps near its root that reach 191.
    assert balanced_modes(191, 2) == (14, 14)
    assert balanced_modes(10**18, 2)[0] * balanced_modes(10**18, 2)[1] >= 10**18


def test_names_are_said_and_exponents_without_a_name_are_listed() -> None:
    assert Einsum.at("Monarch").in_words() == "Monarch as einsum"
    assert Einsum.at("BTT", rho=0.25).in_words() == "BTT as einsum, rank d^0.25"
    odd = Einsum(alpha=0.25, beta=0.75, gamma=0, delta=0.5, epsilon=0.5, phi=0)
    assert odd.in_words() == "einsum (0.25, 0.75, 0, 0.5, 0.5, 0)"
