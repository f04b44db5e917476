"""GBLR: which form is chosen, how it is made from factors, how rectangles are fitted."""

import pytest
import torch

from models.structured import GblrLinear
from models.structured.build import project
from models.structured.gblr import PART, Form, faster_form
from models.structured.output_error import output_error
from models.structures import Gblr, Rectangle


def rectangle(rows: tuple[int, int], columns: tuple[int, int], rank: int) -> Rectangle:
    return Rectangle(
        row_start=rows[0],
        row_count=rows[1],
        column_start=columns[0],
        column_count=columns[1],
        rank=rank,
    )


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


WRAPPED = Gblr(
    rectangles=(
        rectangle((10, 6), (13, 8), 2),
        rectangle((0, 12), (0, 16), 1),
        rectangle((9, 2), (15, 3), 2),
    )
)


def test_factors_and_tiles_stand_where_the_rectangles_say() -> None:
    pairs = [
        (drawn(one.row_count, one.rank), drawn(one.rank, one.column_count))
        for one in WRAPPED.rectangles
    ]
    layer = GblrLinear.from_factors(WRAPPED, pairs, rows=12, columns=16, dtype=torch.float64)
    expected = torch.zeros(12, 16, dtype=torch.float64)
    for one, (row_factor, column_factor) in zip(WRAPPED.rectangles, pairs, strict=True):
        content = row_factor @ column_factor
        for i in range(one.row_count):
            for j in range(one.column_count):
                row, column = (one.row_start + i) % 12, (one.column_start + j) % 16
                expected[row, column] += content[i, j]
    torch.testing.assert_close(layer.to_dense().detach(), expected)
    kinds = [type(piece) for piece in layer.pieces()]
    assert kinds == [tuple, tuple, torch.Tensor]


def test_narrow_matrices_are_packed_and_wide_ones_sliced() -> None:
    narrow = Gblr(rectangles=tuple(rectangle((8 * k, 60), (5 * k, 70), 4) for k in range(12)))
    wide = Gblr(rectangles=tuple(rectangle((90 * k, 230), (70 * k, 230), 32) for k in range(8)))
    assert faster_form(narrow, rows=128, columns=128) == "packed"
    assert faster_form(wide, rows=768, columns=768) == "sliced"
    assert GblrLinear(wide, rows=768, columns=768, form="packed").form == "packed"


@pytest.mark.parametrize("form", ["packed", "sliced"])
def test_autocast_computes_forward_and_backward_in_half_precision(form: Form) -> None:
    weight = drawn(12, 16).float()
    layer = GblrLinear.from_dense(weight, WRAPPED)
    layer.set_form(form)
    x = drawn(5, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), x @ layer.to_dense().T, rtol=0.05, atol=0.1)
    assert layer.factors.grad is not None
    assert layer.factors.grad.isfinite().all()


@pytest.mark.parametrize("form", ["packed", "sliced"])
def test_no_rectangle_is_a_zero_matrix_that_still_trains(form: Form) -> None:
    layer = GblrLinear.from_dense(drawn(3, 4), Gblr(rectangles=()), bias=drawn(3))
    layer.set_form(form)
    x = drawn(2, 4).requires_grad_()
    layer(x).sum().backward()
    assert layer.bias is not None
    torch.testing.assert_close(layer(x), layer.bias.expand(2, 3))


@pytest.mark.parametrize("aware", [False, True])
def test_disjoint_rectangles_are_recovered_exactly(aware: bool) -> None:
    structure = Gblr(rectangles=(rectangle((8, 6), (2, 7), 2), rectangle((3, 4), (10, 5), 1)))
    planted = GblrLinear(structure, rows=12, columns=16, dtype=torch.float64)
    planted.reset_parameters(torch.Generator().manual_seed(1))
    weight, inputs = planted.to_dense().detach(), drawn(40, 16)
    moment = inputs.T @ inputs / 40 if aware else None
    found = project(weight, structure, second_moment=moment).to_dense()
    torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-3)


def test_the_data_aware_fit_has_the_smaller_output_error() -> None:
    weight = drawn(12, 16)
    inputs = drawn(60, 16) @ drawn(16, 16)
    moment = inputs.T @ inputs / 60
    errors = [
        output_error(weight - project(weight, WRAPPED, second_moment=given).to_dense(), moment)
        for given in (None, moment)
    ]
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("bias", [True, False])
def test_products_added_in_place_are_those_that_gradients_follow(bias: bool) -> None:
    layer = GblrLinear(WRAPPED, rows=12, columns=16, bias=bias, dtype=torch.float64, form="sliced")
    layer.reset_parameters(torch.Generator().manual_seed(2))
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    x = drawn(3, 2 * PART // 5, 16)
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x[0, 0]), expected[0, 0])
        assert layer(x[:0]).shape == (0, 2 * PART // 5, 12)
        torch.testing.assert_close(layer(x.mT.contiguous().mT), expected)


def test_an_export_without_gradients_takes_any_number_of_inputs() -> None:
    layer = GblrLinear(WRAPPED, rows=12, columns=16, dtype=torch.float64, form="sliced")
    layer.reset_parameters(torch.Generator().manual_seed(2))
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(layer, (drawn(3, 16),), dynamic_shapes=dynamic)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "aten.addmm_.default" in targets
    for count in (0, 1, PART + 3):
        x = drawn(count, 16)
        torch.testing.assert_close(program.module()(x), layer(x))
