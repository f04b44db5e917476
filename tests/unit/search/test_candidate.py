"""A candidate from the reference to the hard network, interrupted or not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.checkpoint import load_tensors
from models.cost import layer_cost, layer_weight, smallest_step
from search.baselines import Built
from search.budget import group_cost, relaxed_cost
from search.candidate import learn, learning_steps
from search.discretize import harden
from search.gradient import Constraint
from search.progress import Progress, StoppedError
from search.relaxation import round_support
from search.scratch import relax_from_scratch
from search.settling import Settled
from search.spec import LearnerSettings, StartName
from search.starts import relax, start_ranks
from search.training import CHECKPOINT, Course, Problem, evaluate
from tests.unit.search.builders import Listener
from tests.unit.search.conftest import Trained

EPOCHS = 4
STEPS = 5  # in an epoch
SETTINGS = LearnerSettings(learning=0.5, group=2)


def learned(
    trained: Trained,
    folder: Path,
    *,
    progress: Progress | None = None,
    settings: LearnerSettings = SETTINGS,
    after_epoch: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Built:
    folder.mkdir(exist_ok=True)
    problem = Problem(trained.data, trained.reference.answers, trained.spec.training, 0.005, seed=2)
    found = learn(
        Settled(trained.resolved, trained.reference.network, trained.reference.profile),
        settings,
        Course(problem, EPOCHS, folder / CHECKPOINT, progress or Listener(), after_epoch),
    )
    assert abs(found.hardening_gap) < 1e-5
    return found.spec, found.network


def same(one: Built, other: Built) -> bool:
    left, right = one[1].state_dict(), other[1].state_dict()
    return (
        one[0] == other[0]
        and left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) for name in left)
    )


def test_the_same_candidate_twice_is_the_same(trained: Trained, tmp_path: Path) -> None:
    assert same(learned(trained, tmp_path / "one"), learned(trained, tmp_path / "two"))


@pytest.mark.parametrize("metric", ["curvature", "gradient"])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_resumed_after_an_epoch_equals_uninterrupted(
    trained: Trained, tmp_path: Path, done: int, metric: str
) -> None:
    """In the learning, when it has just ended, and in the fine-tuning."""
    settings = LearnerSettings.model_validate(SETTINGS.model_dump() | {"metric": metric})
    whole = learned(trained, tmp_path / "whole", settings=settings)
    stop = Listener(stop_after=STEPS * done + 2)
    with pytest.raises(StoppedError):
        learned(trained, tmp_path / "parts", progress=stop, settings=settings)
    assert same(learned(trained, tmp_path / "parts", settings=settings), whole)


def test_killed_between_fine_tuning_and_hardening_nothing_is_trained_again(
    trained: Trained, tmp_path: Path
) -> None:
    whole = learned(trained, tmp_path / "whole")
    silent = Listener()
    assert same(learned(trained, tmp_path / "whole", progress=silent), whole)
    assert silent.asked == 0


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        LearnerSettings(start="uniform", group=4),
        LearnerSettings(start="output", pieces="ranks", group=1, gaudi=False),
        LearnerSettings(pieces="ranks", group=4),
        LearnerSettings(metric="uniform", shrink=0.5),
        LearnerSettings(metric="gradient", start_excess=1.0, group=3),
        LearnerSettings(schedule=1.0, learning=1.0),
        LearnerSettings(start_excess=100.0, learning=0.01),
        LearnerSettings(structures="competing"),
        LearnerSettings(structures="competing", metric="gradient", group=2, start_excess=2.0),
        LearnerSettings(structures="competing", pieces="ranks", start="output"),
        LearnerSettings(structures="menu"),
        LearnerSettings(start="scratch"),
        LearnerSettings(start="scratch", metric="uniform", start_excess=3.0, group=2),
    ],
)
def test_any_settings_give_a_network_that_uses_the_budget_to_its_last_step(
    trained: Trained, tmp_path: Path, settings: LearnerSettings
) -> None:
    found, _ = learned(trained, tmp_path, settings=settings)
    resolved = trained.resolved
    layers = [layer for layer in found.layers if layer.name in resolved.eligible]
    slack = resolved.budget - sum(layer_cost(layer, resolved.counted) for layer in layers)
    assert slack >= 0
    steps = [smallest_step(layer, resolved.counted) for layer in layers]
    assert all(slack < step for step in steps if step is not None)


def test_the_cost_is_the_budget_after_the_learning_and_stays_there(
    trained: Trained, tmp_path: Path
) -> None:
    kept: dict[int, dict[str, Tensor]] = {}

    def keep(step: int, _loss: float) -> None:
        kept[step] = load_tensors(tmp_path / "checkpoint.safetensors")[0]

    learned(trained, tmp_path, after_epoch=keep)
    resolved, ended = trained.resolved, learning_steps(SETTINGS, EPOCHS * STEPS)
    assert ended == 2 * STEPS
    frozen = [tensors for step, tensors in kept.items() if step >= ended]
    assert len(frozen) == 3
    cost, at_most_a_step = 0, list[int]()
    for layer in resolved.layers:
        sides = dict[str, Tensor]()
        for name, length in (("row", layer.rows), ("column", layer.columns)):
            key = f"network.{layer.name}.{name}_support"
            assert all(torch.equal(tensors[key], frozen[0][key]) for tensors in frozen)
            sides[name] = round_support(frozen[0][key], length)
        weight = layer_weight(layer, resolved.counted)
        cost += weight * int(group_cost(sides["row"], sides["column"], SETTINGS.group).sum())
        at_most_a_step.append(weight * SETTINGS.group * (layer.rows + layer.columns))
        key = f"network.{layer.name}.row_factors"
        assert not torch.equal(frozen[0][key], frozen[-1][key])
    assert 0 <= resolved.budget - cost < max(at_most_a_step)


def test_hardening_changes_no_answer(trained: Trained, tmp_path: Path) -> None:
    losses: list[float] = []
    _, network = learned(trained, tmp_path, after_epoch=lambda _, loss: losses.append(loss))
    hard, _ = evaluate(network, trained.data, trained.data.validation)
    assert hard == pytest.approx(losses[-1], rel=1e-5)


@pytest.mark.parametrize("start", ["answer", "output", "uniform"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_start_costs_about_the_excess_and_has_whole_groups(
    trained: Trained, start: StartName, group: int
) -> None:
    settings = LearnerSettings(start=start, group=group, start_excess=1.5)
    resolved = trained.resolved
    ranks = start_ranks(trained.reference.profile, resolved, settings)
    assert all(rank >= group and rank % group == 0 for rank in ranks)
    ones = [resolved.low_rank(layer, 1) for layer in resolved.layers]
    cost = sum(rank * one for rank, one in zip(ranks, ones, strict=True))
    assert abs(cost - 1.5 * resolved.budget) <= sum(ones) * group


@pytest.mark.parametrize("start", ["answer", "output"])
def test_a_full_start_answers_as_the_reference(trained: Trained, start: StartName) -> None:
    """Full ranks would cost more than the dense layers do, which is as far as a start goes."""
    settings = LearnerSettings(start=start, start_excess=100.0)
    network, _ = relax(
        trained.reference.network, trained.reference.profile, trained.resolved, settings
    )
    inputs = trained.data.validation.inputs
    with torch.no_grad():
        network.eval()
        close = (network(inputs) - trained.reference.network(inputs)).abs().mean()
        scale = trained.reference.network(inputs).abs().mean()
    assert close < 0.5 * scale


def test_from_scratch_nothing_is_taken_from_the_reference_and_yet_it_learns(
    trained: Trained, tmp_path: Path
) -> None:
    losses: list[float] = []
    settings = LearnerSettings(start="scratch", start_excess=2.0)
    problem = Problem(trained.data, None, trained.spec.training, 0.02, seed=2)
    learn(
        Settled(trained.resolved, trained.reference.network, trained.reference.profile),
        settings,
        Course(
            *(problem, 30, tmp_path / CHECKPOINT, Listener()),
            after_epoch=lambda _, loss: losses.append(loss),
        ),
    )
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("excess", [1.0, 2.0, 100.0])
@pytest.mark.parametrize("group", [1, 3])
def test_the_start_from_scratch_keeps_the_variance_and_costs_what_the_excess_says(
    trained: Trained, excess: float, group: int
) -> None:
    settings = LearnerSettings(start="scratch", start_excess=excess, group=group)
    resolved = trained.resolved
    network, relaxation = relax_from_scratch(resolved, settings, seed=3)
    constraint = Constraint.of(resolved)
    cost = relaxed_cost(tuple(relaxation.layers.values()), constraint.weights)
    assert cost == pytest.approx(min(excess * resolved.budget, resolved.dense_cost), rel=0.25)
    for layer in relaxation.layers.values():
        matrix = harden(layer).to_dense().detach()
        assert float(matrix.square().mean() * layer.layer.columns) == pytest.approx(1, rel=1e-3)
    head = network.get_submodule("head")
    assert not any(p.any() for p in head.parameters()), "the readout begins at zero"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": "scratch"}, "start is scratch, but must be answer or output"),
        ({"metric": "uniform"}, "choose curvature or gradient"),
    ],
)
@pytest.mark.parametrize("way", ["competing", "menu"])
def test_alternatives_are_refused_where_nothing_could_choose_them(
    way: str, changes: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        LearnerSettings.model_validate({"structures": way} | changes)


def test_at_least_one_step_learns_and_one_fine_tunes() -> None:
    assert [learning_steps(LearnerSettings(learning=1.0), n) for n in (1, 2, 5)] == [1, 1, 4]
    assert learning_steps(LearnerSettings(learning=0.001), 50) == 1
    assert learning_steps(LearnerSettings(learning=0.5), 50) == 25
