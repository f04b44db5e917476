"""A dense guide that is there at the start and gone in the end."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.structured import LowRankLinear
from models.structured.build import build_layer
from models.structures import LowRank
from search.self_guided import Guidance, SelfGuided, guide_share
from search.spec import DATASET_TASKS
from tests.unit.search.builders import generator, images, structured_mlp

TASK = DATASET_TASKS["digits"]
STEPS = 20


def train(found: nn.Module, guidance: Guidance, steps: int = STEPS) -> None:
    optimiser = torch.optim.Adam(found.parameters(), lr=0.01)
    for step in range(steps):
        guidance.before_step(step)
        optimiser.zero_grad()
        (found(images()) - 3).square().sum().backward()
        optimiser.step()
    guidance.before_step(steps)


@given(st.integers(1, 10_000), st.data())
def test_the_share_falls_from_one_to_exactly_zero(steps: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1))
    assert guide_share(0, steps) == 1
    assert guide_share(step + 1, steps) < guide_share(step, steps)
    assert guide_share(steps, steps) == 0
    assert guide_share(steps + step, steps) == 0


@pytest.mark.parametrize("steps", [0, -3])
def test_a_guide_of_no_steps_is_refused(steps: int) -> None:
    network = structured_mlp()
    before = list(map(type, network.modules()))
    with pytest.raises(ValueError, match=f"steps is {steps}, but a guide admits 1 and more"):
        Guidance(network, steps=steps)
    assert list(map(type, network.modules())) == before
    with pytest.raises(ValueError, match="steps is"):
        guide_share(0, steps)
    with pytest.raises(ValueError, match="step is -1, but a guide admits 0 and more"):
        guide_share(-1, 10)


def test_the_start_is_the_structured_layer_at_every_share() -> None:
    layer = build_layer(LowRank(rank=2), rows=5, columns=7, generator=generator())
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias, generator=generator())
    guided, x = SelfGuided(layer), torch.randn(2, 3, 7, generator=generator())
    for share in (1.0, 0.3, 0.0):
        guided.share = share
        torch.testing.assert_close(guided(x), layer(x))


def test_the_guide_alone_learns_at_first_and_the_layer_alone_in_the_end() -> None:
    layer = build_layer(LowRank(rank=2), rows=5, columns=7, generator=generator())
    assert isinstance(layer, LowRankLinear)
    guided, x = SelfGuided(layer), torch.randn(3, 7, generator=generator())
    for share, led, own in ((1.0, True, False), (0.5, True, True), (0.0, False, True)):
        guided.share = share
        guided.zero_grad()
        guided(x).sum().backward()
        for tensor, learns in ((guided.guide, led), (layer.row_factor, own)):
            moved = tensor.grad is not None and bool((tensor.grad != 0).any())
            assert moved == learns


def test_only_structured_layers_are_guided() -> None:
    guidance = Guidance(structured_mlp(), steps=STEPS)
    assert list(guidance.guided) == ["layers.1", "layers.2"]


def test_what_remains_is_the_plain_network_with_the_same_answers() -> None:
    found = structured_mlp()
    plain = {name: value.shape for name, value in found.state_dict().items()}
    types = list(map(type, found.modules()))
    guidance = Guidance(found, steps=STEPS)
    train(found, guidance)
    answers = found(images())
    guidance.finish()
    assert torch.equal(found(images()), answers)
    assert {name: value.shape for name, value in found.state_dict().items()} == plain
    assert list(map(type, found.modules())) == types


@pytest.mark.parametrize("half", [1, STEPS // 2])
def test_a_guided_training_resumes_from_a_saved_state(half: int) -> None:
    first, second = structured_mlp(), structured_mlp()
    ways = [Guidance(found, steps=STEPS) for found in (first, second)]
    train(first, ways[0], half)
    second.load_state_dict(first.state_dict())
    ways[1].before_step(half)
    assert torch.equal(first(images()), second(images()))
