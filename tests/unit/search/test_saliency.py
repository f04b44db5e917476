"""Saliency: each of the two measures against what it means, computed the long way."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.structured.low_rank import decompose
from models.structured.output_error import output_error
from search.budget import relaxed_cost, shrink_to
from search.gradient import MEMORY
from search.profile import LayerProfile
from search.relaxation import Relaxation, RelaxedLinear, inside
from search.saliency import measure_curvature, observe_gradient
from tests.unit.search.builders import relaxed

# Sides that their cells divide and sides that they do not; every layer has wrapping and dead sides.
SHAPES = [(20, 16, 1), (21, 19, 2), (130, 9, 3), (7, 5, 2), (17, 145, 1)]


def layer_profile(layer: RelaxedLinear, *, with_curvature: bool) -> LayerProfile:
    noise = torch.Generator().manual_seed(9)
    rows, columns = layer.layer.rows, layer.layer.columns

    def moment(length: int) -> Tensor:
        drawn = torch.randn(2 * length, length, generator=noise, dtype=torch.float64)
        return drawn.T @ drawn / len(drawn)

    weight = torch.randn(rows, columns, generator=noise)
    terms = decompose(weight)
    second_moment, curvature = moment(columns), moment(rows)
    return LayerProfile(
        layer=layer.layer,
        weight=weight,
        bias=None,
        second_moment=second_moment,
        curvature=curvature if with_curvature else None,
        output_terms=terms,
        sensitivity=1.0,
        answer_terms=terms,
    )


def movement(piece: Tensor, p: LayerProfile) -> float:
    """tokens x tr(G D C D^T), in float64."""
    if p.curvature is not None:
        piece = torch.linalg.cholesky(p.curvature).T @ piece
    return p.layer.tokens * float(output_error(piece, p.second_moment))


@torch.no_grad()
def dense_group(layer: RelaxedLinear, index: int) -> Tensor:
    """What one group adds to the layer's matrix."""
    terms = slice(index * layer.group, (index + 1) * layer.group)
    rows, columns = layer.rectangles()
    down = inside(rows, layer.layer.rows)[index]
    across = inside(columns, layer.layer.columns)[index]
    product = layer.row_factors[:, terms].double() @ layer.column_factors[terms].double()
    return product * down[:, None] * across


def only(length: int, cell: int, size: int) -> Tensor:
    return (torch.arange(length) // size == cell).double()


@pytest.mark.parametrize("with_curvature", [True, False])
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_curvature_saliency_is_how_far_the_answers_move_without_the_piece(
    rows: int, columns: int, group: int, with_curvature: bool
) -> None:
    layer = relaxed(rows, columns, groups=6, group=group, tokens=3, seed=rows)
    p = layer_profile(layer, with_curvature=with_curvature)
    measure_curvature(layer, p)
    starts, counts = layer.rectangles()[0].unbind(-1)
    assert bool((starts + counts > rows).any()), "no rectangle wraps around"
    for index in range(layer.groups):
        whole = dense_group(layer, index)
        expected = [movement(whole, p)]
        expected += [
            movement(whole * only(rows, cell, layer.row_cell)[:, None], p)
            for cell in range(layer.row_saliency.shape[1])
        ]
        expected += [
            movement(whole * only(columns, cell, layer.column_cell), p)
            for cell in range(layer.column_saliency.shape[1])
        ]
        found = torch.cat(
            [
                layer.whole_saliency[index : index + 1],
                layer.row_saliency[index],
                layer.column_saliency[index],
            ]
        )
        scale = max(expected)
        torch.testing.assert_close(
            found.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5 * scale
        )


@pytest.mark.parametrize("with_curvature", [True, False])
def test_an_alternative_is_worth_how_far_the_answers_move_without_it(with_curvature: bool) -> None:
    layer = relaxed(20, 16, groups=2, tokens=3, beside=True)
    p = layer_profile(layer, with_curvature=with_curvature)
    measure_curvature(layer, p)
    assert layer.beside is not None
    expected = movement(layer.beside.to_dense().detach().double(), p)
    assert float(layer.alternative_saliency) == pytest.approx(expected, rel=1e-4)


def test_by_gradient_an_alternative_is_worth_the_square_of_its_first_order_loss() -> None:
    layer = relaxed(20, 16, groups=2, beside=True)
    network = torch.nn.Sequential(layer)
    Relaxation(network, {"0": layer})
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    network(x).square().sum().backward()
    layer.alternative_saliency.zero_()
    observe_gradient(layer, keep=0.0)
    assert layer.beside is not None
    with torch.no_grad():
        slope = (2 * layer(x) * layer.beside.product(x)).sum()
    assert float(layer.alternative_saliency) == pytest.approx(float(slope) ** 2, rel=1e-4)


def test_pieces_that_left_have_no_curvature_saliency() -> None:
    layer = relaxed(20, 16, groups=3)
    rows, columns = layer.rectangles()
    rows[0, 1] = 0
    layer.set_rectangles(rows, columns)
    measure_curvature(layer, layer_profile(layer, with_curvature=True))
    assert layer.whole_saliency[0] == 0
    assert not layer.row_saliency[0].any()
    assert not layer.column_saliency[0].any()


def gated_gradients(layer: RelaxedLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss's derivatives by a gate of 1 on each row cell, column cell and whole group."""
    rows, columns = layer.layer.rows, layer.layer.columns
    gates = [
        torch.ones(layer.groups, -(-rows // layer.row_cell), requires_grad=True),
        torch.ones(layer.groups, -(-columns // layer.column_cell), requires_grad=True),
        torch.ones(layer.groups, 1, requires_grad=True),
    ]
    row_gate = gates[0].repeat_interleave(layer.row_cell, 1)[:, :rows] * gates[2]
    column_gate = gates[1].repeat_interleave(layer.column_cell, 1)[:, :columns]
    row_mask = (layer.row_mask.detach() * row_gate).repeat_interleave(layer.group, 0)
    column_mask = (layer.column_mask.detach() * column_gate).repeat_interleave(layer.group, 0)
    products = F.linear(x, layer.column_factors * column_mask)
    answer = F.linear(products, layer.row_factors * row_mask.T, layer.bias)
    of_rows, of_columns, of_whole = torch.autograd.grad(answer.square().mean(), gates)
    return of_rows, of_columns, of_whole[:, 0]


@pytest.mark.parametrize("sigma", [0.2, float("inf")])
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_gradient_saliency_is_the_squared_derivative_by_a_gate_on_the_piece(
    rows: int, columns: int, group: int, sigma: float
) -> None:
    layer = relaxed(rows, columns, groups=4, group=group, seed=1)
    saliencies = (layer.row_saliency, layer.column_saliency, layer.whole_saliency)
    for saliency in saliencies:
        saliency.zero_()
    relaxation = Relaxation(layer, {"layer": layer})
    relaxation.sigma = sigma
    x = torch.randn(8, columns, generator=torch.Generator().manual_seed(2))
    layer(x).square().mean().backward()
    observe_gradient(layer, keep=0.0)
    assert layer.row_mask.grad is not None
    summed = (layer.row_mask.grad * layer.row_mask).sum(-1)
    torch.testing.assert_close(layer.whole_saliency, summed.square().detach())
    once = [saliency.clone() for saliency in saliencies]
    for found, gradient in zip(once, gated_gradients(layer, x), strict=True):
        scale = float(gradient.square().max())
        torch.testing.assert_close(found, gradient.square(), rtol=1e-3, atol=1e-5 * scale)
    for saliency in saliencies:
        saliency.zero_()
    observe_gradient(layer, keep=MEMORY)
    for found, expected in zip(saliencies, once, strict=True):
        torch.testing.assert_close(found, (1 - MEMORY) * expected)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("metric", ["curvature", "gradient"])
@pytest.mark.parametrize("size", [1e15, 1e25, float("nan")])
def test_weights_that_run_away_do_not_keep_the_cost_from_falling(metric: str, size: float) -> None:
    layer = relaxed(20, 16, groups=6)
    rows, columns = layer.rectangles()
    rows[1, 1] = 0
    layer.set_rectangles(rows, columns)
    with torch.no_grad():
        layer.row_factors.mul_(size)
    if metric == "curvature":
        measure_curvature(layer, layer_profile(layer, with_curvature=True))
    else:
        layer.row_mask = torch.ones(layer.groups, 20, requires_grad=True)
        layer.column_mask = torch.ones(layer.groups, 16, requires_grad=True)
        layer.row_mask.grad = torch.full((layer.groups, 20), size)
        layer.column_mask.grad = torch.full((layer.groups, 16), size)
        observe_gradient(layer, keep=MEMORY)
    shrink_to([layer], [1], 10, pieces="rectangles")
    assert relaxed_cost([layer], [1]) <= 10
