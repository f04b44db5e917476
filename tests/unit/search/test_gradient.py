"""The learner: its schedule, its masks, and rectangles that find their place."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.spec import LayerSpec
from models.structured.low_rank import decompose
from models.structured.rectangles import rectangle_indices
from models.structures import Rectangle
from search.budget import relaxed_cost
from search.gradient import Constraint, Learner, shrink_uniformly
from search.profile import Profile
from search.relaxation import Relaxation, RelaxedLinear, inside
from search.spec import LearnerSettings
from tests.unit.search.builders import relaxed

SIDE = 32


def learner(
    *,
    settings: LearnerSettings | None = None,
    budget: int = 100,
    steps: int = 60,
) -> Learner:
    layer = relaxed(20, 16, groups=12, seed=2)
    relaxation = Relaxation(layer, {"layer": layer})
    return Learner(
        relaxation,
        Constraint(budget, (1,)),
        Profile(()),
        settings or LearnerSettings(metric="gradient"),
        steps=steps,
        total_steps=100,
    )


def test_the_allowed_cost_falls_from_the_starts_to_the_budget_and_stays() -> None:
    found = learner()
    targets = [found.target(step) for step in range(60)]
    assert targets[0] == found.start_cost > 100
    assert targets == sorted(targets, reverse=True)
    assert targets[40:] == [100] * 20
    assert all(target > 100 for target in targets[:20])


def test_a_start_within_the_budget_is_allowed_the_whole_budget() -> None:
    found = learner(budget=10_000)
    assert {found.target(step) for step in range(60)} == {10_000}


def test_the_schedule_ends_before_the_phase_does() -> None:
    found = learner(settings=LearnerSettings(metric="gradient", schedule=1.0), steps=30)
    assert found.target(29) == 100


def test_masks_sharpen_until_they_are_exact_over_the_last_tenth() -> None:
    found = learner(settings=LearnerSettings(metric="gradient", sigma_start=0.1, sigma_end=1.0))
    sigmas = []
    for step in range(60):
        found.before_step(step)
        sigmas.append(found.relaxation.sigma)
    assert sigmas[0] == pytest.approx(0.1)
    assert sigmas == sorted(sigmas)
    assert all(math.isinf(sigma) == (step >= 54) for step, sigma in enumerate(sigmas))


def test_without_gaudi_masks_are_exact_from_the_start() -> None:
    found = learner(settings=LearnerSettings(metric="gradient", gaudi=False))
    found.before_step(0)
    assert math.isinf(found.relaxation.sigma)


def test_after_its_steps_the_learner_changes_nothing() -> None:
    found = learner()
    layer = found.layers[0]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for step in range(60, 100):
        found.before_step(step)
        layer(torch.ones(3, 16)).sum().backward()
        found.after_backward(step)
        found.after_step(step, 0.1)
        assert math.isinf(found.relaxation.sigma)
    assert layer.row_support.grad is None, "an optimiser would move what is frozen"
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("metric", ["gradient", "uniform"])
@pytest.mark.parametrize("pieces", ["ranks", "rectangles"])
@pytest.mark.parametrize("gaudi", [True, False])
def test_the_cost_holds_at_every_point_of_the_schedule(
    metric: str, pieces: str, gaudi: bool
) -> None:
    settings = LearnerSettings.model_validate(
        {"metric": metric, "pieces": pieces, "gaudi": gaudi, "shrink": 0.1}
    )
    found = learner(settings=settings)
    network = nn.Sequential(found.layers[0])
    network.register_forward_pre_hook(lambda *_: found.relaxation.refresh_masks())
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    for step in range(60):
        found.before_step(step)
        optimiser.zero_grad()
        network(x).square().mean().backward()
        found.after_backward(step)
        optimiser.step()
        found.after_step(step, 0.01)
        cost = relaxed_cost(found.layers, (1,))
        if step % 8 == 7:
            assert cost <= found.target(step)
    assert cost <= 100
    assert math.isinf(found.relaxation.sigma)


def test_one_common_threshold_reaches_the_target() -> None:
    layers = [relaxed(20, 16, groups=6, seed=seed) for seed in (0, 1)]
    before = relaxed_cost(layers, (1, 3))
    shrink_uniformly(layers, (1, 3), before // 3)
    assert 0 < relaxed_cost(layers, (1, 3)) <= before // 3


# --- a planted rectangle -------------------------------------------------------------------------

PLANTED = Rectangle(row_start=6, row_count=12, column_start=14, column_count=10, rank=2)


def planted() -> Tensor:
    noise = torch.Generator().manual_seed(4)
    weight = torch.zeros(SIDE, SIDE)
    rows, columns = rectangle_indices(PLANTED, rows=SIDE, columns=SIDE)
    block = torch.randn(12, 2, generator=noise) @ torch.randn(2, 10, generator=noise)
    weight[rows[:, None], columns] = block
    return weight


def overlap(layer: RelaxedLinear) -> float:
    """Intersection over union of the covered entries, learned and planted."""
    rows, columns = layer.rectangles()
    masks = inside(rows, SIDE).float().T @ inside(columns, SIDE).float()
    learned, wanted = masks > 0, planted() != 0
    return float((learned & wanted).sum() / (learned | wanted).sum())


@pytest.mark.parametrize("shift", [-3, 3])
def test_the_gradient_of_a_location_moves_a_rectangle_to_the_planted_one(shift: int) -> None:
    layer = _two_terms(group=2)
    start = torch.tensor([[PLANTED.row_start + shift, PLANTED.row_count]])
    layer.set_rectangles(start, torch.tensor([[PLANTED.column_start, PLANTED.column_count]]))
    before = overlap(layer)
    relaxation = Relaxation(layer, {"layer": layer})
    relaxation.sigma = 0.2
    optimiser = torch.optim.Adam([layer.row_support], lr=0.004, betas=(0.0, 0.999))
    x, target = torch.eye(SIDE), planted().T
    for _ in range(100):
        optimiser.zero_grad()
        (layer(x) - target).square().sum().backward()
        optimiser.step()
    assert before < 0.7
    assert overlap(layer) > 0.75  # nothing holds its cost, so that it may cover a little more


def test_learned_edges_recover_the_support_better_than_static_ones() -> None:
    assert _recovered(gaudi=True) > _recovered(gaudi=False) + 0.05


def _recovered(*, gaudi: bool) -> float:
    """Learn from a rectangle that is shifted and too large, with exactly the planted cost."""
    layer = _two_terms(group=2)
    layer.set_rectangles(torch.tensor([[10, 12]]), torch.tensor([[17, 10]]))
    relaxation = Relaxation(layer, {"layer": layer})
    steps = 200
    found = Learner(
        relaxation,
        Constraint(44, (1,)),
        Profile(()),
        LearnerSettings(metric="gradient", gaudi=gaudi, sigma_start=0.1, sigma_end=1.0, shrink=0.0),
        steps=steps,
        total_steps=steps,
    )
    supports = relaxation.structural_group(10.0)
    optimiser = torch.optim.Adam(
        [
            {"params": [layer.row_factors, layer.column_factors], "lr": 1e-3},
            {"params": supports["params"], "lr": 1e-2, "betas": supports["betas"]},
        ]
    )
    x, target = torch.eye(SIDE), planted().T
    for step in range(steps):
        found.before_step(step)
        optimiser.zero_grad()
        (layer(x) - target).square().sum().backward()
        found.after_backward(step)
        optimiser.step()
        found.after_step(step, 1e-2)
    assert relaxed_cost([layer], (1,)) <= 44
    return overlap(layer)


def _two_terms(*, group: int) -> RelaxedLinear:
    terms = decompose(planted())
    noise = torch.Generator().manual_seed(1)
    rows, columns = terms.row_factor[:, :2].float(), terms.column_factor[:2].float()
    layer = LayerSpec(name="matrix", rows=SIDE, columns=SIDE, bias=False)
    return RelaxedLinear(
        layer,
        rows + 0.05 * torch.randn(rows.shape, generator=noise),
        columns + 0.05 * torch.randn(columns.shape, generator=noise),
        None,
        group=group,
    )
