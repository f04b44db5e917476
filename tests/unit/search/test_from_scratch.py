"""Learning rates by the maximal-update rule: one rate for every width."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.networks.build import build_network
from models.spec import Mlp, NetworkSpec, Vit, dense_network
from models.structured import DenseLinear, LowRankLinear, StructuredLinear
from models.structured.build import build_layer
from models.structures import BlockDiagonal, Dense, LowRank, Structure, Sum
from search.from_scratch import maximal_update_groups, rate_factors, silence
from search.self_guided import Guidance
from search.spec import DATASET_TASKS
from search.weight_normalisation import normalise_weights, trainable_tensor

TASK = DATASET_TASKS["digits"]
RANKS = LowRank(rank=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron(width: int, structure: Structure = RANKS) -> NetworkSpec:
    dense = dense_network(Mlp(hidden=(width, width)), TASK)
    return dense.with_structures({"layers.1": structure})


def factor_of(groups: list[dict[str, object]], wanted: Tensor) -> float:
    (found,) = (
        group["factor"]
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
        if parameter is wanted
    )
    assert isinstance(found, float)
    return found


def test_a_tensor_learns_by_its_fan_in_and_shares_with_the_other_cores() -> None:
    layer = build_layer(LowRank(rank=4), rows=10, columns=64, generator=generator())
    factors = rate_factors(layer, base_columns=64)
    assert factors == {"column_factor": 1 / 2, "row_factor": 64 / (4 * 2)}
    dense = build_layer(Dense(), rows=10, columns=64, generator=generator())
    assert rate_factors(dense, base_columns=64) == {"weight": 1}
    assert rate_factors(dense, base_columns=16) == {"weight": 1 / 4}


def test_every_parameter_of_a_network_is_in_one_group() -> None:
    for model in (Mlp(hidden=(16, 16)), Vit(width=16, depth=1, heads=2, patch=4)):
        network = build_network(dense_network(model, TASK), generator=generator())
        grouped = [p for group in maximal_update_groups(network) for p in group["params"]]
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == set(network.parameters())


def test_a_wider_network_learns_relative_to_its_base() -> None:
    network = build_network(perceptron(64), generator=generator())
    groups = maximal_update_groups(network, base=perceptron(16, Dense()))
    named = dict(network.named_parameters())
    assert factor_of(groups, named["layers.0.weight"]) == 1  # as many pixels in both
    assert factor_of(groups, named["layers.0.bias"]) == 1
    assert factor_of(groups, named["layers.1.column_factor"]) == 16 / (64 * 2)
    assert factor_of(groups, named["layers.1.row_factor"]) == 16 / (4 * 2)
    assert factor_of(groups, named["head.weight"]) == 16 / 64


def test_the_parts_of_a_sum_learn_as_cores_of_one_layer() -> None:
    parts = (LowRank(rank=4), BlockDiagonal(blocks=2))
    network = build_network(perceptron(64, Sum(parts=parts)), generator=generator())
    groups = maximal_update_groups(network, base=perceptron(16))
    found = {
        name: factor_of(groups, network.get_parameter(f"layers.1.parts.{name}"))
        for name in ("0.column_factor", "0.row_factor", "1.blocks")
    }
    assert found == {"0.column_factor": 16 / 192, "0.row_factor": 16 / 12, "1.blocks": 16 / 96}


def test_matrices_decay_equally_fast_and_vectors_do_not() -> None:
    network = build_network(perceptron(64), generator=generator())
    for group in maximal_update_groups(network, base=perceptron(16), weight_decay=0.1):
        decays = {parameter.ndim > 1 for parameter in group["params"]}
        assert len(decays) == 1
        assert group["factor"] * group["weight_decay"] == pytest.approx(0.1 * decays.pop())


def test_a_base_without_the_layer_is_refused() -> None:
    network = build_network(perceptron(16), generator=generator())
    with pytest.raises(ValueError, match=r"layers\.1 is none of the base network's"):
        maximal_update_groups(network, base=dense_network(Mlp(hidden=(16,)), TASK))


def test_normalised_and_guided_layers_keep_their_factors() -> None:
    network = build_network(perceptron(64), generator=generator())
    layer = network.get_submodule("layers.1")
    assert isinstance(layer, LowRankLinear)
    hidden = {"column_factor": layer.column_factor, "row_factor": layer.row_factor}
    base = perceptron(16)
    plain = maximal_update_groups(network, base=base)
    wanted = {name: factor_of(plain, tensor) for name, tensor in hidden.items()}
    normalise_weights(network)
    guidance = Guidance(network, steps=10)
    groups = maximal_update_groups(network, base=base)
    assert {name: factor_of(groups, tensor) for name, tensor in hidden.items()} == wanted
    assert factor_of(groups, guidance.guided["layers.1"].guide) == 16 / 64
    gains = [value for name, value in network.named_parameters() if name.endswith("gain")]
    assert len(gains) == 4
    assert {factor_of(groups, gain) for gain in gains} == {1.0}


def test_a_silent_head_answers_alike_to_everything_and_learns() -> None:
    network = build_network(perceptron(16), generator=generator())
    head = network.get_submodule("head")
    assert isinstance(head, DenseLinear)
    silence(head)
    answers = network(torch.randn(3, 1, 8, 8, generator=generator()))
    assert (answers == 0).all()
    answers[:, 0].sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.norm() > 0


def test_a_normalised_head_is_silenced_too() -> None:
    network = build_network(perceptron(16), generator=generator())
    normalise_weights(network)
    head = network.get_submodule("head")
    assert isinstance(head, DenseLinear)
    silence(head)
    answers = network(torch.randn(3, 1, 8, 8, generator=generator()))
    assert (answers == 0).all()
    answers[:, 0].sum().backward()
    learning = trainable_tensor(head, "weight").grad
    assert learning is not None
    assert learning.isfinite().all()
    assert learning.norm() > 0


def moved(layer: StructuredLinear, factors: dict[str, float]) -> float:
    """How far one step of Adam moves the output at a batch of few inputs, by root mean square."""
    x = torch.randn(4, layer.columns, generator=generator(1))
    target = torch.randn(4, layer.rows, generator=generator(2))
    groups: list[dict[str, object]] = [
        {"params": [layer.get_parameter(name)], "lr": 1e-3 * factor}
        for name, factor in factors.items()
    ]
    before = layer(x).detach()
    optimiser = torch.optim.Adam(groups)
    (layer(x) * target).sum().backward()
    optimiser.step()
    return float((layer(x).detach() - before).square().mean().sqrt())


# Sixteen times as wide: by one rate, features move farther by what the fan-ins have grown.
STRUCTURES: dict[str, Callable[[int], Structure]] = {
    "blocks of a growing size": lambda _width: BlockDiagonal(blocks=4),
    "dense": lambda _width: Dense(),
    "low rank, a quarter": lambda width: LowRank(rank=width // 4),
    "low rank, fixed": lambda _width: LowRank(rank=8),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_one_step_moves_the_features_alike_at_every_width_by_the_rule_only(name: str) -> None:
    by_rule, by_one_rate = [], []
    for width in (64, 1024):
        first, second = (
            build_layer(STRUCTURES[name](width), rows=width, columns=width, generator=generator())
            for _ in range(2)
        )
        by_rule.append(moved(first, rate_factors(first, base_columns=64)))
        by_one_rate.append(moved(second, dict.fromkeys(second.fan_ins(), 1.0)))
    assert 1 / 1.5 < by_rule[1] / by_rule[0] < 1.5
    assert by_one_rate[1] / by_one_rate[0] > 2.5


def trained(network: nn.Module, groups: list[dict[str, object]]) -> list[Tensor]:
    x = torch.randn(8, 1, 8, 8, generator=generator())
    optimiser = torch.optim.Adam(groups, lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        network(x).square().sum().backward()
        optimiser.step()
    return [parameter.detach() for parameter in network.parameters()]


def test_training_twice_gives_the_same_numbers() -> None:
    first, second = (
        trained(network, maximal_update_groups(network, base=perceptron(16)))
        for network in (build_network(perceptron(32), generator=generator()) for _ in range(2))
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
