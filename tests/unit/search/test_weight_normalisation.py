"""Weights below a ceiling while a network learns, and plain again afterwards."""

import copy

import pytest
import torch
from torch import nn

from models.structured import DenseLinear, LowRankLinear
from models.structured.build import build_layer, empty_layer
from models.structures import Gblr, LowRank
from search.from_scratch import silence
from search.spec import DATASET_TASKS
from search.weight_normalisation import (
    RootMeanSquareCeiling,
    bake_weights,
    normalise_weights,
    root_mean_square,
)
from tests.unit.search.builders import generator, images, structured_mlp

TASK = DATASET_TASKS["digits"]


def train(found: nn.Module, steps: int = 5) -> None:
    optimiser = torch.optim.Adam(found.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (found(images()) - 3).square().sum().backward()
        optimiser.step()


def test_a_tensor_may_shrink_but_only_its_gain_lets_it_grow() -> None:
    tensor = torch.randn(5, 4, generator=generator())
    ceiling = RootMeanSquareCeiling(tensor)
    torch.testing.assert_close(ceiling(tensor), tensor)
    torch.testing.assert_close(ceiling(tensor / 3), tensor / 3)
    torch.testing.assert_close(ceiling(tensor * 3), tensor)
    with torch.no_grad():
        ceiling.gain.fill_(2)
    torch.testing.assert_close(ceiling(tensor * 3), tensor * 2)


def test_its_gradients_are_exact_on_both_sides_of_the_ceiling() -> None:
    tensor = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    ceiling = RootMeanSquareCeiling(tensor)
    for scale in (0.5, 2):
        assert torch.autograd.gradcheck(ceiling, ((tensor * scale).requires_grad_(),))


def test_normalising_changes_nothing_at_first_and_bounds_what_is_learned() -> None:
    found = structured_mlp()
    before = found(images())
    normalise_weights(found)
    torch.testing.assert_close(found(images()), before)
    train(found)
    layer = found.get_submodule("layers.1")
    assert isinstance(layer, LowRankLinear)
    (ceiling,) = layer.get_submodule("parametrizations.row_factor").children()
    assert isinstance(ceiling, RootMeanSquareCeiling)
    assert ceiling.gain != 1
    learned = root_mean_square(layer.row_factor).detach()
    assert learned <= ceiling.gain.abs() * ceiling.size * (1 + 1e-5)


def test_normalising_twice_is_normalising_once() -> None:
    once, twice = structured_mlp(), structured_mlp()
    normalise_weights(once)
    for _ in range(2):
        normalise_weights(twice)
    assert once.state_dict().keys() == twice.state_dict().keys()


def test_a_silent_head_is_refused_by_name_and_nothing_is_wrapped() -> None:
    found = structured_mlp()
    head = found.get_submodule("head")
    assert isinstance(head, DenseLinear)
    silence(head)
    names = found.state_dict().keys()
    with pytest.raises(ValueError, match=r"^head is all zeros, but .*: draw it first, and silence"):
        normalise_weights(found)
    assert found.state_dict().keys() == names


def test_baked_weights_are_plain_layers_that_compute_the_same() -> None:
    plain = structured_mlp()
    found = copy.deepcopy(plain)
    normalise_weights(found)
    train(found)
    answers = found(images()).detach()
    bake_weights(found)
    torch.testing.assert_close(found(images()), answers)
    assert list(map(type, found.modules())) == list(map(type, plain.modules()))
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in found.state_dict().items()} == shapes
    train(found)  # whatever is stored is trainable


def test_a_normalised_network_can_be_saved_and_goes_on_alike() -> None:
    first, second = structured_mlp(), structured_mlp()
    for found in (first, second):
        normalise_weights(found)
    train(first)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images()), second(images()))


def test_a_layer_that_was_not_initialised_is_refused_and_an_empty_one_left_alone() -> None:
    with pytest.raises(ValueError, match="all zeros"):
        normalise_weights(empty_layer(LowRank(rank=2), rows=4, columns=4))
    nothing = build_layer(Gblr(rectangles=()), rows=4, columns=4, generator=generator())
    normalise_weights(nothing)
    assert type(nothing).__name__ == "GblrLinear"
