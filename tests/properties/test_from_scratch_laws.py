"""What training from scratch owes every matrix structure, at every width."""

import pytest
import torch
from torch import Tensor, nn

from models.structured import DenseLinear, StructuredLinear
from models.structured.build import build_layer
from models.structures import Dense, Structure, Sum
from search.from_scratch import maximal_update_groups, rate_factors
from search.self_guided import Guidance, SelfGuided
from search.weight_normalisation import (
    RootMeanSquareCeiling,
    bake_weights,
    normalise_weights,
    trainable_tensor,
)
from tests.properties.families import FAMILIES
from tests.properties.family import Family

RATE = 1e-3


def ceilings(network: nn.Module) -> int:
    return sum(isinstance(module, RootMeanSquareCeiling) for module in network.modules())


def moved(structure: Structure, width: int) -> float:
    """How far one step of Adam moves a square layer's features at a few inputs."""
    generator = torch.Generator().manual_seed(0)
    layer: StructuredLinear = build_layer(structure, rows=width, columns=width, generator=generator)
    x, wish = torch.randn(2, 4, width, generator=generator)
    before = layer(x).detach()
    factors = rate_factors(layer, base_columns=64)
    optimiser = torch.optim.Adam(
        {"params": [layer.get_parameter(name)], "lr": RATE * factor}
        for name, factor in factors.items()
    )
    (layer(x) * wish).sum().backward()
    optimiser.step()
    return float((layer(x).detach() - before).square().mean().sqrt())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("width", [64, 1024])
def test_one_step_moves_a_structures_features_as_far_as_a_dense_layers(
    family: Family, width: int
) -> None:
    """Within a factor of two of what a dense layer of 64 columns does: so at all widths alike.

    Those exempt may move less, but never more.
    """
    dense = moved(Dense(), 64)
    least = 0 if "one step moves features as a dense layer's" in family.exempt else dense / 2
    for structure in family.at_width(width):
        assert least < moved(structure, width) < 2 * dense, structure


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_normalised_weights_are_the_same_at_first_and_baked_without_a_trace(family: Family) -> None:
    generator = torch.Generator().manual_seed(0)
    for structure in family.at_width(16):
        layer = build_layer(structure, rows=16, columns=16, generator=generator)
        x, names = torch.randn(4, 16, generator=generator), list(layer.state_dict())
        before, kind = layer(x), type(layer)
        normalise_weights(layer)
        assert ceilings(layer) == layer.core_count()  # one for each tensor, a part's of a sum too
        torch.testing.assert_close(layer(x), before)
        with torch.no_grad():
            for name in layer.fan_ins():
                trainable_tensor(layer, name).mul_(1.5)
        learned = layer(x)
        bake_weights(layer)
        torch.testing.assert_close(layer(x), learned)
        assert type(layer) is kind
        assert sorted(layer.state_dict()) == sorted(names)


def test_sums_are_among_the_families() -> None:
    assert any(isinstance(family.at_width(16)[0], Sum) for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_layers_rates_in_a_network_are_the_layers_own(family: Family) -> None:
    for structure in family.at_width(16):
        layer = build_layer(structure, rows=16, columns=16, generator=torch.Generator())
        groups = maximal_update_groups(nn.Sequential(layer))
        found: dict[Tensor, float] = {
            p: group["factor"] for group in groups for p in group["params"]
        }
        wanted = rate_factors(layer, base_columns=16)
        assert {name: found[layer.get_parameter(name)] for name in wanted} == wanted


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_guide_is_beside_the_whole_layer_and_gone_in_the_end(family: Family) -> None:
    generator = torch.Generator().manual_seed(0)
    for structure in family.at_width(16):
        layer = build_layer(structure, rows=16, columns=16, generator=generator)
        network, x = nn.Sequential(layer), torch.randn(4, 16, generator=generator)
        before = network(x)
        guidance = Guidance(network, steps=2)
        guides = [module for module in network.modules() if isinstance(module, SelfGuided)]
        assert [guide.layer for guide in guides] == [layer] * (not isinstance(layer, DenseLinear))
        for step in range(3):
            guidance.before_step(step)
            torch.testing.assert_close(network(x), before)
        guidance.finish()
        assert network[0] is layer
