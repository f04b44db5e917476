"""Gates that reach exactly zero by gradients, and come back."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from search.sparsification import gates, normalised_gates, p_norm, sparsified, starting_logit


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def logit_of(share: float) -> Tensor:
    return torch.tensor(share, dtype=torch.float64).logit()


logits = st.floats(-1e4, 1e4).map(lambda b: torch.tensor(b, dtype=torch.float64))
values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9).map(
    lambda found: torch.tensor(found, dtype=torch.float64)
)


def test_a_gate_is_what_exceeds_the_threshold_and_exactly_zero_below_it() -> None:
    found = gates(torch.tensor([4.0, -3.0, 1.0, 0.0]), torch.tensor(0.25).logit())
    torch.testing.assert_close(found, torch.tensor([2.0, 1.0, 0.0, 0.0]))
    assert found[2:].tolist() == [0, 0]


@given(values, logits)
def test_normalised_gates_sum_to_one_and_one_is_alive_whatever_the_threshold(
    found: Tensor, logit: Tensor
) -> None:
    shares = normalised_gates(found, logit)
    assert shares.sum() == pytest.approx(1)
    assert shares.min() >= 0
    assert shares.max() > 0
    if found.abs().max() > 1e-300:
        assert gates(found, logit)[found.abs().argmax()] > 0


@given(st.integers(2, 100))
def test_nothing_of_equal_size_is_dead_at_the_start(components: int) -> None:
    logit = torch.tensor(starting_logit(components), dtype=torch.float64)
    found = gates(torch.ones(components, dtype=torch.float64), logit)
    torch.testing.assert_close(found, torch.full_like(found, 0.95))


def test_each_of_a_batch_has_its_own_threshold() -> None:
    several, several_logits = normal(3, 5), normal(3)
    groups = normal(3, 5, 2)
    for index in range(3):
        torch.testing.assert_close(
            gates(several, several_logits)[index], gates(several[index], several_logits[index])
        )
        torch.testing.assert_close(
            sparsified(groups, several_logits)[index],
            sparsified(groups[index], several_logits[index]),
        )


def test_gradients_are_exact_where_all_are_alive() -> None:
    entries, logit = normal(6).requires_grad_(), logit_of(0.001).requires_grad_()
    groups = normal(6, 3).requires_grad_()
    assert (gates(entries, logit) > 0).all()
    for function, inputs in ((gates, entries), (normalised_gates, entries), (sparsified, groups)):
        assert torch.autograd.gradcheck(function, (inputs, logit))


SMALL_AND_GREAT = torch.tensor([5.0, 0.1, 3, 0.2, 4.9, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("share", [0.15, 0.9])
@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (gates, normal(6)),
        (normalised_gates, normal(6)),
        (sparsified, SMALL_AND_GREAT[:, None] * normal(6, 3)),
    ],
)
def test_gradients_of_live_components_are_exact_though_others_are_dead(
    function: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, share: float
) -> None:
    """Below the threshold's ceiling, and at it."""
    logit = logit_of(share)
    live = function(inputs, logit).reshape(6, -1).abs().sum(-1) > 0
    assert 0 < live.sum() < 6

    def of_the_live(found: Tensor) -> Tensor:
        whole = inputs.clone()
        whole[live] = found
        return function(whole, logit)

    assert torch.autograd.gradcheck(of_the_live, (inputs[live].requires_grad_(),))


def test_the_thresholds_gradient_is_exact_below_its_ceiling_and_can_lower_it_there() -> None:
    entries = normal(6)
    below = logit_of(0.15).requires_grad_()
    assert (gates(entries, below) == 0).any()
    assert torch.autograd.gradcheck(lambda b: gates(entries, b), (below,))
    above = logit_of(0.9).requires_grad_()
    gates(entries, above).sum().backward()
    assert above.grad is not None
    assert above.grad < 0


def test_every_dead_component_learns_of_its_own_use() -> None:
    entries = torch.tensor([5.0, 0.1, -0.2, 0.0], requires_grad=True)
    wish = torch.tensor([1.0, 1.0, 1.0, -2.0])
    opened = gates(entries, torch.tensor(0.2).logit())
    assert (opened[1:] == 0).all()
    (gradient,) = torch.autograd.grad(opened @ wish, entries)
    # Through the threshold all are told the same; what is left is each one's own.
    own = gradient + 0.2 * torch.tensor([1.0, 1.0, -1.0, 1.0])
    assert own[1] > 0
    assert own[2] < 0
    assert own[3] < 0
    assert len(set(own.abs().tolist())) == 4


@pytest.mark.parametrize("start", [0.1, 0.0, -0.1])
def test_a_dead_component_comes_back_where_the_loss_needs_it(start: float) -> None:
    entries = torch.tensor([2.0, start, 2.0], requires_grad=True)
    logit = torch.tensor(0.1).logit().requires_grad_()
    assert gates(entries, logit)[1] == 0
    optimiser = torch.optim.Adam([entries], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        (normalised_gates(entries, logit) - torch.tensor([0.5, 0.5, 0.0])).square().sum().backward()
        optimiser.step()
    found = normalised_gates(entries, logit).detach()
    assert found[1] == pytest.approx(0.5, abs=0.02)
    assert found[2] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("start", [[0.01, 0.0], [0.0, 0.0], [0.0, -0.01]])
def test_a_dead_group_comes_back_in_the_direction_that_is_needed(start: list[float]) -> None:
    groups = torch.tensor([[1.0, 0.0], start], requires_grad=True)
    logit = torch.tensor(0.1).logit()
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert (sparsified(groups, logit)[1] == 0).all()
    optimiser = torch.optim.Adam([groups], lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (sparsified(groups, logit) - target).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(sparsified(groups, logit).detach(), target, rtol=0, atol=1e-2)


def test_groups_of_one_are_gates_with_the_sign_of_their_value() -> None:
    entries, logit = normal(7), logit_of(0.1)
    found = sparsified(entries[:, None], logit)[:, 0]
    torch.testing.assert_close(found, entries.sign() * gates(entries, logit))


@given(st.integers(0, 100), st.floats(0.01, 100), logits)
def test_the_group_form_follows_scales_orders_and_rotations(
    seed: int, scale: float, logit: Tensor
) -> None:
    groups = normal(5, 3, seed=seed)
    found = sparsified(groups, logit)
    torch.testing.assert_close(sparsified(scale * groups, logit), scale * found)
    torch.testing.assert_close(sparsified(groups.flip(0), logit), found.flip(0))
    rotations = torch.linalg.qr(normal(5, 3, 3, seed=seed))[0]
    turned = (rotations @ groups[..., None])[..., 0]
    torch.testing.assert_close(sparsified(turned, logit), (rotations @ found[..., None])[..., 0])


@given(st.integers(0, 100), st.floats(1e-3, 1e3), logits)
def test_normalised_gates_do_not_see_the_scale(seed: int, scale: float, logit: Tensor) -> None:
    entries = normal(6, seed=seed)
    torch.testing.assert_close(
        normalised_gates(scale * entries, logit), normalised_gates(entries, logit)
    )


@given(st.integers(1, 20), st.integers(0, 5))
def test_the_p_norm_counts_equal_gates(alive: int, dead: int) -> None:
    shares = torch.cat([torch.full((alive,), 1 / alive), torch.zeros(dead)]).requires_grad_()
    found = p_norm(shares)
    assert float(found.detach()) == pytest.approx(alive, rel=1e-4)
    (gradient,) = torch.autograd.grad(found, shares)
    assert gradient.isfinite().all()
    assert (gradient[alive:] == 0).all()


@pytest.mark.parametrize("p", [0, 1, 2])
def test_a_norm_that_rewards_no_sparsity_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"p is .*, but"):
        p_norm(torch.ones(2) / 2, p)


def test_a_sparse_regression_is_recovered_exactly() -> None:
    wanted = torch.zeros(30, 1, dtype=torch.float64)
    wanted[[3, 11, 20, 28], 0] = torch.tensor([2.0, -1.5, 1.0, -0.7], dtype=torch.float64)
    inputs = normal(60, 30, seed=1)
    targets = inputs @ wanted
    weights = normal(30, 1, seed=2).requires_grad_()
    logit = torch.tensor(starting_logit(30), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([weights, logit], lr=0.02)
    for step in range(1500):
        found = sparsified(weights, logit)
        loss = (inputs @ found - targets).square().mean()
        if step < 1000:  # then what is left of the weights is free of the penalty's pull
            loss = loss + 0.02 * p_norm(normalised_gates(weights[:, 0], logit))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = sparsified(weights, logit).detach()
    assert torch.equal(found != 0, wanted != 0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
