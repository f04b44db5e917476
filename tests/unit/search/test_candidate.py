"""A candidate from the reference to the hard network, interrupted or not."""

import shutil
from pathlib import Path

import pytest
import torch

from models.cost import layer_cost, smallest_step
from search.candidate import Learned, learn, learning_epochs, relax, start_ranks
from search.progress import Progress
from search.spec import LearnerSettings
from search.training import Problem, StoppedError
from tests.unit.search.builders import Listener
from tests.unit.search.conftest import Trained

EPOCHS = 4
SETTINGS = LearnerSettings(learning=0.75, group=2)


def learned(
    trained: Trained,
    folder: Path,
    *,
    progress: Progress | None = None,
    settings: LearnerSettings = SETTINGS,
) -> Learned:
    folder.mkdir(exist_ok=True)
    return learn(
        trained.reference.network,
        trained.reference.profile,
        trained.resolved,
        settings,
        Problem(trained.data, trained.reference.answers, trained.spec.training, seed=2),
        epochs=EPOCHS,
        folder=folder,
        progress=progress or Listener(),
    )


def same(one: Learned, other: Learned) -> bool:
    left, right = one.built[1].state_dict(), other.built[1].state_dict()
    return (
        one.built[0] == other.built[0]
        and left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) for name in left)
    )


def test_the_same_candidate_twice_is_the_same(trained: Trained, tmp_path: Path) -> None:
    assert same(learned(trained, tmp_path / "one"), learned(trained, tmp_path / "two"))


@pytest.mark.parametrize("done", [1, 2])
def test_resumed_after_an_epoch_equals_uninterrupted(
    trained: Trained, tmp_path: Path, done: int
) -> None:
    whole = learned(trained, tmp_path / "whole")
    stop = Listener(stop_after=5 * done + 2)
    with pytest.raises(StoppedError):
        learned(trained, tmp_path / "parts", progress=stop)
    again = learned(trained, tmp_path / "parts")
    assert same(again, whole)
    assert (again.soft_loss, again.hard_loss) == (whole.soft_loss, whole.hard_loss)


def test_killed_between_learning_and_hardening_equals_uninterrupted(
    trained: Trained, tmp_path: Path
) -> None:
    whole = learned(trained, tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "hard")
    again = learned(trained, tmp_path / "whole")
    assert same(again, whole)
    assert (again.soft_loss, again.hard_loss) == (whole.soft_loss, whole.hard_loss)


def test_what_is_hard_already_is_not_learned_again(trained: Trained, tmp_path: Path) -> None:
    whole = learned(trained, tmp_path / "whole")
    silent = Listener()
    again = learned(trained, tmp_path / "whole", progress=silent)
    assert same(again, whole)
    assert silent.asked == 0


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        LearnerSettings(start="uniform", group=4),
        LearnerSettings(pieces="ranks", group=1, gaudi=False),
        LearnerSettings(pieces="ranks", group=4),
        LearnerSettings(metric="uniform", shrink=0.5),
        LearnerSettings(start_excess=1.0, group=3),
        LearnerSettings(schedule=1.0, learning=1.0),
    ],
)
def test_any_settings_give_a_network_that_uses_the_budget_to_its_last_step(
    trained: Trained, tmp_path: Path, settings: LearnerSettings
) -> None:
    found = learned(trained, tmp_path, settings=settings)
    resolved = trained.resolved
    layers = [layer for layer in found.built[0].layers if layer.name in resolved.eligible]
    slack = resolved.budget - sum(layer_cost(layer, resolved.quantity) for layer in layers)
    assert slack >= 0
    steps = [smallest_step(layer, resolved.quantity) for layer in layers]
    assert all(slack < step for step in steps if step is not None)


def test_a_start_costs_about_the_excess_and_has_whole_groups(trained: Trained) -> None:
    for group in (1, 2, 4):
        settings = LearnerSettings(group=group)
        ranks = start_ranks(trained.reference.profile, trained.resolved, settings)
        assert all(rank >= group and rank % group == 0 for rank in ranks)


def test_a_full_start_answers_as_the_reference(trained: Trained) -> None:
    """At twice a budget of one half everything is kept, where the ranks are full."""
    settings = LearnerSettings(start_excess=100.0)
    network, _ = relax(
        trained.reference.network, trained.reference.profile, trained.resolved, settings
    )
    inputs = trained.data.validation.inputs
    with torch.no_grad():
        network.eval()
        close = (network(inputs) - trained.reference.network(inputs)).abs().mean()
        scale = trained.reference.network(inputs).abs().mean()
    assert close < 0.5 * scale


def test_the_last_epoch_always_fine_tunes() -> None:
    assert [learning_epochs(LearnerSettings(learning=1.0), n) for n in (1, 2, 5)] == [1, 1, 4]
    assert learning_epochs(LearnerSettings(learning=0.01), 50) == 1
