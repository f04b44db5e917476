"""Structures on a grid of blocks: what was planted is found, and every way of computing agrees."""

import pytest
import torch
from torch import Tensor

from models.structured import BttLinear, tile_choice
from models.structured.block_low_rank import error_curve as block_low_rank_curve
from models.structured.block_sparse import FEW_INPUTS
from models.structured.block_sparse import error_curve as block_sparse_curve
from models.structured.btt import MANY_INPUTS
from models.structured.btt import error_curve as btt_curve
from models.structured.build import build_layer, project
from models.structured.descent import layer_parameters
from models.structured.output_error import output_error, regularised
from models.structures import BlockDiagonal, BlockLowRank, BlockSparse, Btt, LowRank, Structure

ROWS, COLUMNS = 60, 90
BTT = Btt(input_blocks=6, output_blocks=4, rank=3)
MONARCH = Btt(input_blocks=8, output_blocks=8)
TILES = BlockSparse(tile=16, positions=((0, 1), (0, 5), (1, 0), (3, 2), (3, 3)))
RANKS = BlockLowRank(ranks=((2, 0, 1), (0, 3, 4), (1, 1, 0), (0, 0, 5)))
PLANTED: list[Structure] = [BlockDiagonal(blocks=7), BTT, MONARCH, TILES, RANKS]


def drawn(*shape: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(columns: int = COLUMNS) -> Tensor:
    inputs = drawn(300, columns) @ drawn(columns, columns, seed=4) / columns**0.5
    found: Tensor = inputs.T @ inputs / 300
    return found


def planted(structure: Structure) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    layer = build_layer(structure, rows=ROWS, columns=COLUMNS, generator=generator)
    return layer.to_dense().detach().double()


def relative_error(weight: Tensor, found: Tensor) -> float:
    return float((weight - found).norm() / weight.norm())


@pytest.mark.parametrize("structure", PLANTED, ids=lambda one: one.in_words())
@pytest.mark.parametrize("second_moment", [None, moment()], ids=["plain", "aware"])
def test_a_planted_matrix_is_recovered(structure: Structure, second_moment: Tensor | None) -> None:
    weight = planted(structure)
    found = project(weight, structure, second_moment=second_moment).to_dense().detach()
    assert relative_error(weight, found) < 1e-6


@pytest.mark.parametrize("second_moment", [None, moment()], ids=["plain", "aware"])
def test_the_structure_itself_is_recovered_from_the_curve(second_moment: Tensor | None) -> None:
    tiles = block_sparse_curve(planted(TILES), second_moment, tile=16)
    assert tiles.structure(len(TILES.positions) - 1) == TILES
    ranks = block_low_rank_curve(planted(RANKS), second_moment, row_blocks=4, column_blocks=3)
    assert ranks.structure(RANKS.total_rank - 1) == RANKS
    btt = btt_curve(planted(BTT), second_moment, input_blocks=6, output_blocks=4)
    assert btt.structure(BTT.rank - 1) == BTT
    for curve, size in ((tiles, 5), (ranks, RANKS.total_rank), (btt, BTT.rank)):
        assert curve.errors[size - 1] < 1e-7 < curve.errors[size - 2]


@pytest.mark.parametrize("structure", PLANTED, ids=lambda one: one.in_words())
@pytest.mark.parametrize("inputs", [1, FEW_INPUTS + 1, MANY_INPUTS + 1])
def test_without_gradients_the_product_is_the_same(structure: Structure, inputs: int) -> None:
    generator = torch.Generator().manual_seed(5)
    layer = build_layer(
        structure, rows=ROWS, columns=COLUMNS, generator=generator, dtype=torch.float64
    )
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias, generator=generator)
    x = drawn(inputs, COLUMNS)
    expected = x @ layer.to_dense().T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer.product(x), expected - layer.bias)
        torch.testing.assert_close(layer(x.view(1, inputs, COLUMNS))[0], expected)
        torch.testing.assert_close(torch.vmap(layer)(x[:2]), expected[:2])
        # A slice of a wider tensor, as attention hands over.
        torch.testing.assert_close(layer(torch.cat([x, x], 1)[:, :COLUMNS]), expected)
        if inputs == MANY_INPUTS + 1:
            with torch.autocast("cpu", torch.bfloat16):
                assert layer.float()(x.float()).dtype == torch.bfloat16


def correlated(columns: int, *, noise: float) -> Tensor:
    """Of inputs like the pixels of smooth images; without noise, C is nearly singular."""
    place = torch.linspace(0, 1, columns, dtype=torch.float64)
    waves = torch.cos(torch.outer(torch.arange(12), place) * torch.pi)
    inputs = drawn(200, 12, seed=8) @ waves + 1 + noise * drawn(200, columns, seed=9)
    found: Tensor = inputs.T @ inputs / 200
    return found


@pytest.mark.parametrize("noise", [0.5, 0.05, 1e-6])
@pytest.mark.parametrize(("rows", "tile"), [(60, 8), (24, 13), (9, 2)])
def test_tiles_chosen_for_outputs_are_never_worse_than_the_plain_choice(
    noise: float, rows: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, second_moment = drawn(rows, 50), correlated(50, noise=noise)
    plain = block_sparse_curve(weight, tile=tile)
    moment = regularised(second_moment)  # as every projection sees it
    whole = output_error(weight, moment)

    def real_error(structure: Structure) -> float:
        found = project(weight, structure, second_moment=second_moment).to_dense().detach()
        return float(output_error(weight - found, moment) / whole)

    for work in (tile_choice.WORK, 0.0):  # fitted together, and by pursuit
        monkeypatch.setattr(tile_choice, "WORK", work)
        curve = block_sparse_curve(weight, second_moment, tile=tile)
        assert curve.errors.diff().le(1e-12).all()
        for index in range(0, len(curve.errors), 5):
            error = real_error(curve.structure(index))
            assert error == pytest.approx(curve.errors[index].item(), abs=1e-7)
            assert error <= real_error(plain.structure(index)) + 1e-7


def test_of_tiles_that_carry_the_same_only_one_is_taken() -> None:
    """Two halves of the inputs are nearly equal: by their own outputs, both would come first."""
    half = drawn(300, 8)
    inputs = torch.cat([half, half + 1e-3 * drawn(300, 8, seed=4), 0.5 * drawn(300, 8, seed=5)], 1)
    weight = torch.ones(8, 24).double() + 0.1 * drawn(8, 24)
    second_moment = inputs.T @ inputs / 300
    curve = block_sparse_curve(weight, second_moment, tile=8)
    either = [BlockSparse(tile=8, positions=((0, first), (0, 2))) for first in (0, 1)]
    assert curve.structure(1) in either


def test_where_measuring_is_dear_a_curve_of_tiles_is_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, second_moment = drawn(48, 64), correlated(64, noise=0.05)
    exact = block_sparse_curve(weight, second_moment, tile=8)
    monkeypatch.setattr(tile_choice, "MEASURED", 2e5)
    bound = block_sparse_curve(weight, second_moment, tile=8)
    assert bound.errors.diff().le(1e-12).all()
    assert (exact.errors <= bound.errors + 1e-9).all()
    assert torch.equal(exact.errors[:5], bound.errors[:5])
    monkeypatch.setattr(tile_choice, "WORK", 0.0)
    pursued = block_sparse_curve(weight, second_moment, tile=8)
    whole = output_error(weight, second_moment)
    for index in range(0, len(pursued.errors), 4):
        found = project(weight, pursued.structure(index), second_moment=second_moment).to_dense()
        assert output_error(weight - found, second_moment) / whole <= pursued.errors[index] + 1e-6


def test_one_block_is_low_rank() -> None:
    weight, second_moment = drawn(ROWS, COLUMNS), moment()
    expected = project(weight, LowRank(rank=5), second_moment=second_moment).to_dense()
    alone: list[Structure] = [
        Btt(input_blocks=1, output_blocks=1, rank=5),
        BlockLowRank(ranks=((5,),)),
    ]
    for structure in alone:
        found = project(weight, structure, second_moment=second_moment).to_dense()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_fourier_like_permuted_matrix_is_monarch() -> None:
    """A Kronecker product has blocks of rank 1 once its rows are interleaved."""
    one, other = drawn(6, 6), drawn(5, 5)
    interleaved = torch.kron(one, other).view(6, 5, 30).transpose(0, 1).reshape(30, 30)
    layer = BttLinear.from_dense(interleaved, Btt(input_blocks=6, output_blocks=5))
    assert relative_error(interleaved, layer.to_dense().detach()) < 1e-9


@pytest.mark.parametrize("structure", [TILES, RANKS, BTT], ids=lambda one: one.in_words())
def test_a_data_aware_projection_is_better_where_it_counts(structure: Structure) -> None:
    weight, second_moment = drawn(ROWS, COLUMNS), moment()
    errors = [
        output_error(
            weight - project(weight, structure, second_moment=given).to_dense(), second_moment
        )
        for given in (None, second_moment)
    ]
    assert errors[1] < 0.97 * errors[0]


def test_water_filling_is_never_worse_than_one_rank_for_all() -> None:
    weight = drawn(ROWS, COLUMNS) * torch.linspace(0.1, 3, COLUMNS, dtype=torch.float64)
    filled = block_low_rank_curve(weight, row_blocks=4, column_blocks=6)
    uniform = btt_curve(weight, input_blocks=6, output_blocks=4)
    same_cost = torch.searchsorted(filled.macs, uniform.macs)
    assert torch.equal(filled.macs[same_cost], uniform.macs)
    assert (filled.errors[same_cost] <= uniform.errors + 1e-12).all()
    assert filled.errors[same_cost[2]] < 0.9 * uniform.errors[2]


def test_a_tile_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"positions names the tile \(.+\) twice"):
        BlockSparse(tile=2, positions=((0, 1), (0, 1)))


def test_tiles_are_kept_in_order() -> None:
    assert BlockSparse(tile=2, positions=((1, 0), (0, 1))).positions == ((0, 1), (1, 0))


def test_ranks_must_be_a_grid_with_something_in_it() -> None:
    with pytest.raises(ValueError, match="must be a rectangle"):
        BlockLowRank(ranks=((1,), (1, 2)))
    with pytest.raises(ValueError, match="at least one block"):
        BlockLowRank(ranks=((0, 0),))


def test_a_matrix_of_zeros_is_no_trouble() -> None:
    for structure in PLANTED:
        zero = torch.zeros(ROWS, COLUMNS)
        for given in (None, moment()):
            layer = project(zero, structure, second_moment=given)
            assert torch.equal(layer.to_dense(), zero)
    assert block_sparse_curve(torch.zeros(3, 4), tile=2).errors.tolist() == [0] * 4


def test_terms_with_nothing_to_do_are_as_large_as_the_others_at_any_scale() -> None:
    weight, structure = drawn(5, 5), BlockLowRank(ranks=((0, 0), (0, 0), (2, 0)))  # of one row
    plain, small = (project(scale * weight, structure) for scale in (1.0, 2.0**-8))
    for large, tiny in zip(layer_parameters(plain), layer_parameters(small), strict=True):
        assert torch.equal(tiny, 2.0**-4 * large)


@torch.no_grad()
def test_the_smallest_weights_are_fitted_to_their_outputs_as_well_as_others() -> None:
    inputs = moment(5) * 1e-10
    errors: list[float] = []
    for weight in (drawn(2, 5), drawn(2, 5) * 2.0**-20):
        layer = project(weight, Btt(input_blocks=2, output_blocks=1), second_moment=inputs)
        error = output_error(weight - layer.to_dense(), inputs)
        errors.append(float(error / output_error(weight, inputs)))
    assert errors[1] == pytest.approx(errors[0], rel=1e-6)
