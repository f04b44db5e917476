"""Training from scratch where a layer is made of others, or stands for no single matrix."""

import pytest
import torch
from torch import Tensor, nn

from models.networks.build import build_network
from models.spec import ImageTask, LayerSpec, Mlp, NetworkSpec, dense_network
from models.structured.btt_moe import BttMoeLinear
from models.structured.build import build_layer
from models.structured.convolution import StructuredConv2d
from models.structured.sparse_convolution import SparseConv2d
from models.structured.trainable import TrainableLayer, outermost_layers
from models.structures import BlockDiagonal, Dense, LowRank, Sum
from models.structures.btt_moe import BttMoe
from models.structures.convolution import Convolution, SparseConvolution
from search.from_scratch import maximal_update_groups, rate_factors
from search.self_guided import Guidance
from search.spec import DATASET_TASKS
from search.weight_normalisation import (
    RootMeanSquareCeiling,
    bake_weights,
    normalise_weights,
    trainable_tensor,
)

TASK = DATASET_TASKS["digits"]
SUM = Sum(parts=(LowRank(rank=4), BlockDiagonal(blocks=4)))
TAPS = ((0, 0), (1, 1))
IMAGES = (3, 8, 6, 6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron(width: int = 64) -> nn.Module:
    dense = dense_network(Mlp(hidden=(width, width)), TASK)
    return build_network(dense.with_structures({"layers.1": SUM}), generator=generator())


def convolution(groups: int = 2) -> StructuredConv2d:
    spec = Convolution(
        in_channels=8, out_channels=8, kernel=(3, 3), groups=groups, structure=LowRank(rank=2)
    )
    layer = StructuredConv2d(spec)
    layer.reset_parameters(generator())
    return layer


def sparse_convolution() -> SparseConv2d:
    spec = SparseConvolution(in_channels=8, out_channels=8, kernel=(3, 3), groups=2, taps=TAPS)
    layer = SparseConv2d(spec)
    layer.reset_parameters(generator())
    return layer


def mixture(width: int = 64) -> BttMoeLinear:
    spec = BttMoe(input_blocks=4, output_blocks=4, rank=2, experts=4, active=2)
    layer = BttMoeLinear(spec, rows=width, columns=width)
    layer.reset_parameters(generator())
    return layer


def base_of(**columns: int) -> NetworkSpec:
    """A table with these layers, named as those of `nn.Sequential` or a field."""
    layers = (LayerSpec(name=name, rows=8, columns=count) for name, count in columns.items())
    task = ImageTask(channels=1, height=8, width=8, classes=10)
    return NetworkSpec(model=Mlp(hidden=(8,)), task=task, layers=tuple(layers))


def factors_of(network: nn.Module, base: NetworkSpec | None = None) -> dict[str, float]:
    """The factor of every parameter by its name."""
    groups = maximal_update_groups(network, base=base)
    found: dict[Tensor, float] = {p: group["factor"] for group in groups for p in group["params"]}
    return {name: found[parameter] for name, parameter in network.named_parameters()}


def gains(network: nn.Module) -> int:
    return sum(isinstance(module, RootMeanSquareCeiling) for module in network.modules())


def test_a_networks_layers_are_named_without_what_they_are_made_of() -> None:
    network = nn.ModuleDict({"deep": nn.Sequential(convolution(), mixture()), "net": perceptron()})
    network["again"] = network["deep"]
    names = [name for name, _ in outermost_layers(network)]
    assert names == ["deep.0", "deep.1", "net.layers.0", "net.layers.1", "net.head"]


def test_the_tensors_of_a_sum_share_its_rate() -> None:
    factors = factors_of(perceptron())
    assert factors["layers.1.parts.0.column_factor"] == 64 / (64 * 3)
    assert factors["layers.1.parts.0.row_factor"] == 64 / (4 * 3)
    assert factors["layers.1.parts.1.blocks"] == 64 / (16 * 3)
    assert factors["layers.1.bias"] == 1


def test_a_sum_is_guided_as_a_whole_with_its_rates_kept() -> None:
    network = perceptron()
    plain = factors_of(network)
    before = network(torch.randn(3, 1, 8, 8, generator=generator()))
    guidance = Guidance(network, steps=4)
    assert list(guidance.guided) == ["layers.1"]
    guidance.before_step(2)
    torch.testing.assert_close(network(torch.randn(3, 1, 8, 8, generator=generator())), before)
    factors = factors_of(network, dense_network(Mlp(hidden=(16, 16)), TASK))
    assert factors["layers.1.guide"] == 16 / 64
    assert factors["layers.1.layer.parts.0.row_factor"] == 16 / (4 * 3)
    guidance.finish()
    assert factors_of(network) == plain


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolutions_groups_each_learn_as_one_matrix(groups: int) -> None:
    network, columns = nn.ModuleDict({"layer": convolution(groups)}), 8 // groups * 9
    wanted = {"column_factor": 1 / 2, "row_factor": columns / (2 * 2)}
    for base, relative in ((None, 1.0), (base_of(layer=36), 36 / columns)):
        factors = factors_of(network, base)
        for group in range(groups):
            for name, factor in wanted.items():
                assert factors[f"layer.matrices.{group}.{name}"] == factor * relative


def test_a_convolution_is_not_guided_and_computes_as_before() -> None:
    network, x = nn.Sequential(convolution()), torch.randn(*IMAGES, generator=generator())
    before = network(x)
    assert Guidance(network, steps=4).guided == {}
    assert torch.equal(network(x), before)


def test_a_sparse_convolution_learns_as_a_dense_one_of_its_channels_and_taps() -> None:
    network = nn.ModuleDict({"layer": sparse_convolution()})
    assert factors_of(network)["layer.weight"] == (8 * 9) / (4 * 2)
    assert factors_of(network, base_of(layer=16))["layer.weight"] == 16 / (4 * 2)


def test_a_mixtures_factors_and_router_share_its_rate() -> None:
    network = nn.ModuleDict({"layer": mixture()})
    factors = factors_of(network)
    assert factors["layer.router"] == 64 / (64 * 3)
    assert factors["layer.input_factor"] == 64 / (16 * 3)
    assert factors["layer.output_factor"] == 64 / (8 * 3)
    assert factors["layer.bias"] == 1
    assert factors_of(network, base_of(layer=16))["layer.router"] == 16 / (64 * 3)


def test_what_the_base_lacks_is_refused_by_the_layers_own_name() -> None:
    network = nn.ModuleDict({"layer": convolution()})
    with pytest.raises(ValueError, match="the layer layer is none of the base network's: other"):
        maximal_update_groups(network, base=base_of(other=8))


@pytest.mark.parametrize(
    ("layer", "tensors"),
    [
        (build_layer(SUM, rows=64, columns=64, generator=generator()), 3),
        (convolution(), 4),
        (sparse_convolution(), 1),
        (mixture(), 2),  # a router begins with zeros, and has no size to keep to
    ],
)
def test_every_tensor_has_one_ceiling_and_none_in_the_end(
    layer: TrainableLayer, tensors: int
) -> None:
    shape = IMAGES if isinstance(layer, StructuredConv2d | SparseConv2d) else (3, 64)
    network, x = nn.Sequential(layer), torch.randn(*shape, generator=generator())
    before, names = network(x).detach(), sorted(network.state_dict())
    normalise_weights(network)
    assert gains(network) == tensors
    torch.testing.assert_close(network(x), before)
    bake_weights(network)
    assert gains(network) == 0
    assert sorted(network.state_dict()) == names
    torch.testing.assert_close(network(x), before)


def moved(layer: TrainableLayer, x: Tensor) -> float:
    """How far one step of Adam moves the output at a few inputs, by root mean square."""
    factors = rate_factors(layer, base_columns=64)
    optimiser = torch.optim.Adam(
        {"params": [trainable_tensor(layer, name)], "lr": 1e-3 * factor}
        for name, factor in factors.items()
    )
    before = layer(x).detach()
    (layer(x) * torch.randn(before.shape, generator=generator(2))).sum().backward()
    optimiser.step()
    return float((layer(x).detach() - before).square().mean().sqrt())


@pytest.mark.parametrize("width", [64, 1024])
def test_one_step_moves_a_mixtures_features_as_far_as_a_dense_layers(width: int) -> None:
    dense = build_layer(Dense(), rows=64, columns=64, generator=generator())
    wanted = moved(dense, torch.randn(4, 64, generator=generator(1)))
    layer = mixture(width)
    with torch.no_grad():  # a choice between the experts that one step hardly changes
        layer.router.copy_(torch.randn(layer.router.shape, generator=generator(3)) / width**0.5)
    found = moved(layer, torch.randn(4, width, generator=generator(1)))
    assert wanted / 2 < found < 2 * wanted


@pytest.mark.parametrize("channels", [8, 32])
def test_one_step_moves_a_convolutions_features_as_far_as_a_dense_ones(channels: int) -> None:
    def spec(groups: int, structure: LowRank | Sum | Dense) -> Convolution:
        shape = {"in_channels": channels, "out_channels": channels, "kernel": (3, 3)}
        return Convolution.model_validate(shape | {"groups": groups, "structure": structure})

    both = Sum(parts=(LowRank(rank=2), BlockDiagonal(blocks=2)))
    specs = (spec(1, LowRank(rank=4)), spec(2, LowRank(rank=4)), spec(2, both), spec(2, Dense()))
    sparse = SparseConvolution(
        in_channels=channels, out_channels=channels, kernel=(3, 3), groups=1, taps=TAPS
    )
    layers: list[StructuredConv2d | SparseConv2d] = [
        StructuredConv2d(one) for one in (spec(1, Dense()), *specs)
    ]
    found = []
    for layer in [*layers, SparseConv2d(sparse)]:
        layer.reset_parameters(generator())
        found.append(moved(layer, torch.randn(4, channels, 5, 5, generator=generator(1))))
    assert all(found[0] / 2 < one < 2 * found[0] for one in found[1:]), found
