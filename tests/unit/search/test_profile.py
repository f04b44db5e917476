"""The profile: curvatures of the answers, and terms whose expected harm they tell."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.structured.low_rank import DAMPING
from models.structured.output_error import output_error, regularised
from search.profile import (
    Awareness,
    LayerProfile,
    load_profile,
    output_curvatures,
    profile,
    save_profile,
    second_moments,
)
from search.progress import Silent
from tests.unit.search.conftest import Trained


def names(trained: Trained) -> list[str]:
    return [layer.name for layer in trained.resolved.layers]


def test_curvatures_are_the_same_every_time_and_positive_semidefinite(trained: Trained) -> None:
    network, inputs = trained.reference.network, trained.data.train.inputs
    one, two = (output_curvatures(network, names(trained), inputs) for _ in range(2))
    assert list(one) == names(trained)
    for layer in trained.resolved.layers:
        found = one[layer.name]
        assert torch.equal(found, two[layer.name])
        assert found.shape == (layer.rows, layer.rows)
        torch.testing.assert_close(found, found.T)
        values = torch.linalg.eigvalsh(found)
        assert values[-1] > 0
        assert values[0] > -1e-6 * values[-1]


def test_curvatures_leave_no_gradient_and_no_hook_behind(trained: Trained) -> None:
    network, inputs = trained.reference.network, trained.data.train.inputs[:10]
    output_curvatures(network, names(trained), inputs)
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_the_curvature_of_a_layer_before_a_linear_map_is_that_maps_own() -> None:
    """Answers A y move by D with tr(A D C D^T A^T), where A is centred over the classes."""
    noise = torch.Generator().manual_seed(0)
    first, last = nn.Linear(5, 4), nn.Linear(4, 10)
    with torch.no_grad():
        last.weight.copy_(torch.randn(10, 4, generator=noise))
    inputs = torch.randn(3000, 5, generator=noise)
    found = output_curvatures(nn.Sequential(first, last), ["0"], inputs)["0"]
    centred = (last.weight - last.weight.mean(0)).detach().double()
    expected = centred.T @ centred
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_second_moments_are_means_over_all_tokens() -> None:
    noise = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 7, 5, generator=noise)
    found = second_moments(nn.Sequential(nn.Linear(5, 4)), ["0"], inputs)["0"]
    tokens = inputs.flatten(0, 1).double()
    torch.testing.assert_close(found, tokens.T @ tokens / len(tokens), rtol=1e-5, atol=1e-5)


def test_a_layer_that_is_never_called_is_left_dense_with_the_reason(
    trained: Trained, tmp_path: Path
) -> None:
    network = copy.deepcopy(trained.reference.network)
    first, head = network.get_submodule("layers.0"), network.get_submodule("head")
    # As a hand-written network may: the second layer is there, and the data pass it by.
    network.forward = lambda x: head(first(x.flatten(1)).relu()[:, :12])
    for _ in range(2):  # measured, and then read
        found = profile(network, trained.data, trained.resolved, Silent(), kept=tmp_path)
        assert [one.layer.name for one in found.layers] == ["layers.0"]
        assert found.left_dense == {"layers.1": "the network never calls it"}


def harm(p: LayerProfile, difference: Tensor, aware: Awareness) -> float:
    if aware == "output":
        error = output_error(difference, p.second_moment) / output_error(
            p.weight.double(), p.second_moment
        )
        return p.sensitivity * float(error)
    assert p.curvature is not None
    root = torch.linalg.cholesky(regularised(p.curvature, DAMPING)).T
    return p.layer.tokens * float(output_error(root @ difference, p.second_moment))


@pytest.mark.parametrize("aware", ["output", "answer"])
def test_the_expected_harm_of_a_rank_is_that_of_its_terms(
    trained: Trained, aware: Awareness
) -> None:
    for p in trained.reference.profile.layers:
        terms, errors = p.terms(aware), p.errors(aware)
        for rank in range(len(errors)):
            kept = terms.row_factor[:, :rank] @ terms.column_factor[:rank]
            expected = harm(p, p.weight.double() - kept, aware)
            assert errors[rank] == pytest.approx(expected, rel=1e-3, abs=1e-4 * errors[0])


@pytest.mark.parametrize("aware", ["output", "answer"])
def test_ranks_are_allocated_within_any_budget_and_more_of_it_harms_less(
    trained: Trained, aware: Awareness
) -> None:
    resolved, measured = trained.resolved, trained.reference.profile
    harms = []
    for budget in (resolved.smallest_cost, resolved.budget, resolved.dense_cost):
        ranks, allocation = measured.allocate_ranks(resolved, budget, aware)
        assert min(ranks) >= 1
        assert allocation.cost <= budget
        errors = [p.errors(aware)[rank] for p, rank in zip(measured.layers, ranks, strict=True)]
        assert allocation.error == pytest.approx(sum(errors))
        harms.append(allocation.error)
    assert harms == sorted(harms, reverse=True)


def test_a_profile_is_read_back_as_it_was_and_leaves_the_network_alone(
    trained: Trained, tmp_path: Path
) -> None:
    network = trained.reference.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measured = profile(network, trained.data, trained.resolved, Silent())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    save_profile(tmp_path / "profile", measured)
    again = load_profile(tmp_path / "profile", network, trained.resolved)
    for one, other in zip(measured.layers, again.layers, strict=True):
        assert one.sensitivity == other.sensitivity
        assert one.curvature is not None
        assert other.curvature is not None
        assert torch.equal(one.curvature, other.curvature)
        for aware in ("output", "answer"):
            assert one.errors(aware) == other.errors(aware)
            assert torch.equal(one.terms(aware).row_factor, other.terms(aware).row_factor)
