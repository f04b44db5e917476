"""Every layer through torch's compiler and exporter."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from models.spec import BlockDiagonal, Dense, Gblr, LowRank, Rectangle, Structure
from models.structured import GblrLinear
from models.structured.build import build_layer
from models.structured.gblr import Form

SIZES = (14, 20, 17, 11, 16, 13)
GBLR = Gblr(
    rectangles=(
        Rectangle(row_start=7, row_count=6, column_start=5, column_count=9, rank=2),
        Rectangle(row_start=2, row_count=9, column_start=0, column_count=11, rank=1),
        Rectangle(row_start=1, row_count=2, column_start=9, column_count=3, rank=2),
    )
)
LAYERS: list[tuple[Structure, Form | None]] = [
    (Dense(), None),
    (LowRank(rank=3), None),
    (BlockDiagonal(blocks=3), None),
    (GBLR, "packed"),
    (GBLR, "sliced"),
]


def build(structure: Structure, form: Form | None, *, rows: int, columns: int) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = build_layer(structure, rows=rows, columns=columns, generator=generator)
    if isinstance(layer, GblrLinear) and form is not None:
        layer.form = form
    return layer


@pytest.mark.parametrize(("structure", "form"), LAYERS)
def test_a_layer_is_exported_with_a_dynamic_batch(structure: Structure, form: Form | None) -> None:
    layer = build(structure, form, rows=13, columns=16)
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(layer, (torch.randn(3, 2, 16),), dynamic_shapes=dynamic)
    x = torch.randn(7, 2, 16)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_all_layers_compile_as_one_graph_forward_and_backward() -> None:
    shapes = zip(LAYERS, pairwise(SIZES), strict=True)
    network = nn.Sequential(
        *(build(*layer, rows=rows, columns=columns) for layer, (columns, rows) in shapes)
    )
    x = torch.randn(4, SIZES[0])
    expected = network(x)
    expected.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    with warnings.catch_warnings():
        # The compiler's own use of deprecated parts of torch.
        warnings.simplefilter("ignore")
        actual = torch.compile(network, fullgraph=True)(x)
        actual.square().sum().backward()
    torch.testing.assert_close(actual, expected)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)
