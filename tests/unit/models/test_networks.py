"""The built-in networks: their layers' names, and counts that agree with what torch measures."""

from typing import assert_never

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.cost import network_macs, network_parameters
from models.networks.build import build_network
from models.networks.transformer import attention
from models.spec import (
    Gpt,
    ImageTask,
    LayerSpec,
    Matrix,
    MatrixTask,
    Mixer,
    Mlp,
    Model,
    NetworkSpec,
    Task,
    TextTask,
    Vit,
    dense_network,
)
from models.structured import GblrLinear, StructuredLinear
from models.structured.build import build_layer
from models.structures import BlockDiagonal, Gblr, LowRank, Rectangle, Structure

IMAGES = ImageTask(channels=3, height=8, width=8, classes=5)
PROBLEMS: list[tuple[Model, Task]] = [
    (Mlp(hidden=(24, 20)), IMAGES),
    (Vit(patch=4, width=16, depth=2, heads=2, expansion=3), IMAGES),
    (Mixer(patch=2, width=16, depth=2, token_hidden=12, expansion=3), IMAGES),
    (Gpt(context=10, width=16, depth=2, heads=2), TextTask(vocabulary=13, context=10)),
    (Matrix(artifact="some"), MatrixTask(rows=9, columns=14)),
]
STRUCTURES: list[Structure | None] = [
    None,
    LowRank(rank=3),
    BlockDiagonal(blocks=4),
    Gblr(
        rectangles=(
            Rectangle(row_start=6, row_count=7, column_start=9, column_count=10, rank=2),
            Rectangle(row_start=1, row_count=2, column_start=3, column_count=3, rank=2),
        )
    ),
]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def example(spec: NetworkSpec, batch: int) -> torch.Tensor:
    match spec.task:
        case ImageTask(channels=channels, height=height, width=width):
            return torch.randn(batch, channels, height, width, generator=generator())
        case TextTask(vocabulary=vocabulary, context=context):
            return torch.randint(vocabulary, (batch, context), generator=generator())
        case MatrixTask(columns=columns):
            return torch.randn(batch, columns, generator=generator())
        case _:
            assert_never(spec.task)


def with_structure(spec: NetworkSpec, structure: Structure | None) -> NetworkSpec:
    if structure is None:
        return spec
    names = [layer.name for layer in spec.layers if min(layer.rows, layer.columns) >= 9]
    return spec.with_structures(dict.fromkeys(names, structure))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("model", "task"), PROBLEMS)
def test_counted_parameters_and_macs_are_the_real_ones(
    model: Model, task: Task, structure: Structure | None
) -> None:
    spec = with_structure(dense_network(model, task), structure)
    network = build_network(spec, generator=generator())
    for module in network.modules():
        if isinstance(module, GblrLinear):
            module.form = "sliced"
    assert sum(p.numel() for p in network.parameters()) == network_parameters(spec)
    # torch counts no floating-point operation in its fused CPU attention: two products a head.
    with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
        network(example(spec, 1))
    assert counter.get_total_flops() == 2 * network_macs(spec)


def _attention_flops(query: torch.Size, key: torch.Size, *_: object, **__: object) -> int:
    batch, heads, tokens, size = query
    return 2 * 2 * batch * heads * tokens * key[-2] * size


FUSED_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@pytest.mark.parametrize(("model", "task"), PROBLEMS)
def test_every_layer_lies_under_the_name_in_the_table(model: Model, task: Task) -> None:
    spec = with_structure(dense_network(model, task), LowRank(rank=3))
    network = build_network(spec, generator=generator())
    for layer in spec.layers:
        module = network.get_submodule(layer.name)
        assert isinstance(module, StructuredLinear)
        assert (module.rows, module.columns) == (layer.rows, layer.columns)
        assert (module.bias is not None) == layer.bias
        assert module.spec == layer.structure


@pytest.mark.parametrize(("model", "task"), PROBLEMS)
def test_outputs_have_the_task_s_shape_and_every_parameter_a_gradient(
    model: Model, task: Task
) -> None:
    spec = dense_network(model, task)
    network = build_network(spec, generator=generator())
    scores = network(example(spec, 3))
    places = (model.context,) if isinstance(model, Gpt) else ()
    assert scores.shape == (3, *places, spec.layers[-1].rows)
    scores.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("model", "task"), PROBLEMS)
def test_an_injected_layer_is_asked_for_by_its_spec(model: Model, task: Task) -> None:
    spec, asked = dense_network(model, task), list[LayerSpec]()

    def linear(layer: LayerSpec) -> nn.Module:
        asked.append(layer)
        return nn.Linear(layer.columns, layer.rows, bias=layer.bias)

    network = build_network(spec, generator=generator(), linear=linear)
    assert sorted(asked, key=lambda layer: layer.name) == sorted(
        spec.layers, key=lambda layer: layer.name
    )
    assert isinstance(network.get_submodule(spec.layers[0].name), nn.Linear)


def test_one_seed_is_one_network() -> None:
    spec = dense_network(*PROBLEMS[1])
    first, second = (build_network(spec, generator=generator()).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_vision_transformer_sees_where_a_patch_lies() -> None:
    spec = dense_network(*PROBLEMS[1])
    network = build_network(spec, generator=generator())
    images = example(spec, 2)
    assert not torch.allclose(network(images), network(images.flip(3)), atol=1e-3)


@pytest.mark.parametrize(("model", "task"), PROBLEMS[1:4])
def test_a_network_trains_under_autocast(model: Model, task: Task) -> None:
    spec = dense_network(model, task)
    network = build_network(spec, generator=generator())
    inputs = example(spec, 4)
    with torch.autocast("cpu", torch.bfloat16):
        scores = network(inputs)
        scores.float().square().sum().backward()
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores.float(), network(inputs), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("causal", [False, True])
def test_both_forms_of_attention_are_the_same_mixture(causal: bool) -> None:
    parts = torch.randn(3, 2, 4, 9, 6, generator=generator()).bfloat16()
    fused = attention(*parts.float(), causal=causal)
    torch.testing.assert_close(
        attention(*parts, causal=causal).float(), fused, rtol=0.03, atol=0.03
    )
    first = parts[2, :, :, 0].float()
    assert torch.allclose(fused[:, :, 0], first, atol=1e-6) == causal


def test_a_character_s_scores_depend_on_it_and_those_before_alone() -> None:
    network = build_network(dense_network(*PROBLEMS[3]), generator=generator())
    text = example(dense_network(*PROBLEMS[3]), 1)
    other = text.clone()
    other[0, 6] = (text[0, 6] + 1) % 13
    before, after = network(text)[0], network(other)[0]
    torch.testing.assert_close(before[:6], after[:6])
    moved = (before - after).abs().amax(-1)
    assert (moved[6:] > 1e-4).all()


def test_a_text_may_be_shorter_than_the_context() -> None:
    spec = dense_network(*PROBLEMS[3])
    network, text = build_network(spec, generator=generator()), example(spec, 2)
    torch.testing.assert_close(network(text[:, :4]), network(text)[:, :4])


def test_a_mixer_mixes_tokens_and_is_blind_without() -> None:
    spec = dense_network(*PROBLEMS[2])
    network, images = build_network(spec, generator=generator()), example(spec, 2)
    assert not torch.allclose(network(images), network(images.flip(3)), atol=1e-3)
    for block in range(2):
        for name in ("weight", "bias"):
            with torch.no_grad():
                network.get_parameter(f"blocks.{block}.token_down.{name}").zero_()
    swapped = images.unflatten(3, (2, 4)).flip(3).flatten(3)  # whole patches change places
    torch.testing.assert_close(network(images), network(swapped))


@pytest.mark.parametrize(("model", "task"), PROBLEMS[1:4])
@pytest.mark.usefixtures("unchecked")
def test_an_exported_network_takes_any_batch(model: Model, task: Task) -> None:
    spec = with_structure(dense_network(model, task), LowRank(rank=3))
    network = build_network(spec, generator=generator()).eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(network, (example(spec, 2),), dynamic_shapes=shapes)
    for batch in (1, 5):
        inputs = example(spec, batch)
        torch.testing.assert_close(program.module()(inputs), network(inputs))


def test_a_layer_prints_its_structure_in_words() -> None:
    layer = build_layer(LowRank(rank=2), rows=3, columns=4, generator=torch.Generator())
    assert str(layer) == "LowRankLinear(structure='low rank, 2', rows=3, columns=4, bias=True)"
