"""Where learning meets a limit: a phase that goes on, a narrow layer, groups that are dead."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from models.networks.build import build_network
from models.spec import Mlp
from search.data import image_data, matrix_data
from search.gradient import Constraint, Learner
from search.profile import Profile, profile
from search.progress import Silent, StoppedError
from search.recipe import Training
from search.relaxation import Relaxation
from search.resolved import resolve
from search.spec import LearnerSettings
from search.starts import relax
from search.training import Course, Problem, fit, weight_groups
from tests.unit.search.builders import Listener, mixed_matrix, relaxed, tiny


def test_a_resumed_phase_tells_its_whole_curve_again(tmp_path: Path) -> None:
    """What was killed may have kept an epoch and not yet said what it came to."""
    data = matrix_data(mixed_matrix())
    problem = Problem(data, None, Training(), 0.01, seed=0)

    def curve(stop_after: int | None) -> list[tuple[int, float]]:
        listener = Listener(stop_after=stop_after)
        network = torch.nn.Linear(16, 24, bias=False)
        with torch.no_grad():
            network.weight.fill_(0.1)
        course = Course(problem, 3, tmp_path / "checkpoint.safetensors", listener)
        with suppress(StoppedError):
            fit(network, course, weight_groups(network), phase="tuning")
        return [
            (update.done, update.metrics["validation_loss"])
            for update in listener.updates
            if update.metrics
        ]

    first = curve(stop_after=2 * problem.steps_per_epoch)
    assert len(first) == 2
    assert curve(stop_after=None)[:2] == first


@pytest.mark.parametrize("settings", [LearnerSettings(group=4), LearnerSettings(group=3)])
def test_a_group_is_never_larger_than_its_layer_admits(settings: LearnerSettings) -> None:
    spec = tiny(model=Mlp(hidden=(3, 7)), budget={"ratio": 0.9})
    resolved = resolve(spec)
    reference = build_network(resolved.network, generator=torch.Generator().manual_seed(0))
    measured = profile(reference, image_data("digits", seed=0), resolved, Silent())
    _, relaxation = relax(reference, measured, resolved, settings)
    for layer in relaxation.layers.values():
        smaller = min(layer.layer.rows, layer.layer.columns)
        assert layer.group == min(settings.group, smaller)
        assert layer.group * layer.groups <= smaller


def test_shrinking_goes_on_where_most_groups_are_dead() -> None:
    layer = relaxed(20, 16, groups=12, seed=2)
    rows, columns = layer.rectangles()
    rows[1:, 1], columns[1:, 1] = 0, 0
    rows[0], columns[0] = torch.tensor([0, 20]), torch.tensor([0, 16])
    layer.set_rectangles(rows, columns)
    settings = LearnerSettings(metric="gradient", structural_rate=1.0)
    relaxation = Relaxation(layer, {"layer": layer})
    learner = Learner(
        relaxation, Constraint(10, (1,)), Profile(()), settings, steps=60, total_steps=100
    )
    learner.after_step(0, 0.01)
    assert torch.isfinite(layer.row_support).all()
    assert torch.isfinite(layer.column_support).all()
