"""Every layer through torch's compiler and exporter."""

import os
import warnings
from collections.abc import Iterator

import pytest
import torch

from models.structured import GblrLinear
from models.structured.base import StructuredLinear
from models.structured.build import build_layer
from tests.compiling import assert_compiled_alike
from tests.properties.families import FAMILIES
from tests.properties.family import Family

WIDTH = 16
pytestmark = pytest.mark.usefixtures("unchecked")
# Generating code takes seconds for each layer: `make proof` does it for all of them.
GENERATED = [
    family for family in FAMILIES if "FULL_PROOF" in os.environ or family.name.startswith("BTT")
]


def layers(family: Family) -> Iterator[StructuredLinear]:
    """The family's typical member, in every form of its product."""
    generator = torch.Generator().manual_seed(0)
    structure = family.at_width(WIDTH)[0]
    layer = build_layer(structure, rows=WIDTH, columns=WIDTH, generator=generator)
    if isinstance(layer, GblrLinear):
        layer.set_form("packed")
        yield layer
        layer.set_form("sliced")
    yield layer


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_layer_is_exported_with_a_dynamic_batch(family: Family) -> None:
    for layer in layers(family):
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        example = (torch.randn(3, 2, WIDTH),)
        program = torch.export.export(layer, example, dynamic_shapes=dynamic)
        x = torch.randn(7, 2, WIDTH)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_layer_compiles_as_one_graph(family: Family) -> None:
    for layer in layers(family):
        assert_compiled_alike(layer, torch.randn(4, WIDTH), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", GENERATED, ids=str)
def test_code_is_generated_for_a_layer(family: Family) -> None:
    for layer in layers(family):
        compiled = torch.compile(layer, fullgraph=True)
        x = torch.randn(4, WIDTH)
        with warnings.catch_warnings(), torch.no_grad():
            # The compiler's own use of deprecated parts of torch.
            warnings.simplefilter("ignore")
            actual = compiled(x)
        torch.testing.assert_close(actual, layer(x), rtol=1e-4, atol=1e-4)
