"""Every layer through torch's compiler and exporter."""

import warnings
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from jaxtyping import config
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


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Without jaxtyping's checks, if any are on: the compiler cannot trace them."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)  # noqa: FBT003
    yield
    config.update("jaxtyping_disable", before)


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


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_all_layers_compile_as_one_graph(backend: str) -> None:
    shapes = zip(LAYERS, pairwise(SIZES), strict=True)
    network = nn.Sequential(
        *(build(*layer, rows=rows, columns=columns) for layer, (columns, rows) in shapes)
    )
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x = torch.randn(4, SIZES[0])
    with warnings.catch_warnings():
        # The compiler's own use of deprecated parts of torch.
        warnings.simplefilter("ignore")
        # Generating code for a backward pass as well takes a minute and shows nothing more.
        with torch.set_grad_enabled(backend != "inductor"):
            actual = compiled(x)
    torch.testing.assert_close(actual, network(x))
    if actual.requires_grad:
        parameters = list(network.parameters())
        torch.testing.assert_close(
            torch.autograd.grad(actual.square().sum(), parameters),
            torch.autograd.grad(network(x).square().sum(), parameters),
            rtol=1e-4,
            atol=1e-5,
        )
