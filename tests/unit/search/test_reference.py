"""The reference: trained once, kept between searches, read back as it was."""

from pathlib import Path

import pytest
import torch

from search.data import Data, load_data
from search.profile import Awareness
from search.progress import Progress, StoppedError
from search.reference import load_reference, make_reference, reference_key
from search.resolved import resolve
from search.spec import SearchSpec
from tests.unit.search.builders import Listener, matrix_spec, mixed_matrix, tiny, upload
from tests.unit.search.conftest import Trained


def make(spec: SearchSpec, data: Data, folder: Path, progress: Progress) -> torch.nn.Module:
    folder.mkdir(parents=True)
    return make_reference(
        spec,
        resolve(spec),
        data,
        cache=folder.parent / "cache",
        folder=folder,
        threads=1,
        progress=progress,
    )


def test_the_second_search_does_not_train(digits: Data, tmp_path: Path) -> None:
    first, second = Listener(), Listener()
    one = make(tiny(), digits, tmp_path / "one", first)
    two = make(tiny(budget={"ratio": 0.3}), digits, tmp_path / "two", second)
    # Each step of two epochs, and each of two layers: statistics, sensitivity, menu.
    assert first.asked == 2 * 5 + 3 * 2
    assert {update.phase for update in second.updates} == {"profile", "menu"}
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_second_search_does_not_profile_again(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tiny(), digits, tmp_path / "one", Listener())
    for called in ("profile.second_moments", "profile.output_curvatures", "profile.answers"):
        monkeypatch.setattr(f"search.{called}", None)
    monkeypatch.setattr("search.menu_making.project", None)
    make(tiny(name="again"), digits, tmp_path / "again", Listener())
    for file in ("menu.json", "profile.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"model": {"kind": "mlp", "hidden": [16, 13]}},
        {"dataset": "mnist-5k"},
        {"training": {"learning_rate": 0.02}},
        {"training": {"learning_rate": 0.01, "samples": 100}},
        {"compute": {"reference_epochs": 3}},
    ],
)
def test_whatever_changes_the_numbers_changes_the_key(changes: dict[str, object]) -> None:
    assert reference_key(tiny(**changes), threads=1) != reference_key(tiny(), threads=1)
    assert reference_key(tiny(), threads=2) != reference_key(tiny(), threads=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"budget": {"ratio": 0.2}},
        {"repeats": 3},
        {"layers": {"include": ["*"]}},
        {"compute": {"trials": 9, "epochs": 2, "reference_epochs": 2}},
    ],
)
def test_what_does_not_change_the_numbers_keeps_the_key(changes: dict[str, object]) -> None:
    assert reference_key(tiny(**changes), threads=1) == reference_key(tiny(), threads=1)


def test_a_trial_reads_what_the_reference_left(digits: Data, tmp_path: Path) -> None:
    network = make(tiny(), digits, tmp_path / "one", Listener())
    found = load_reference(tmp_path / "one", resolve(tiny()))
    assert found.answers is not None
    with torch.no_grad():
        expected = network(digits.train.inputs)
    torch.testing.assert_close(found.answers, expected)
    assert [p.layer.name for p in found.profile.layers] == ["layers.0", "layers.1"]


@pytest.mark.parametrize("aware", ["output", "answer"])
def test_the_expected_harm_falls_with_every_rank_to_nothing(
    trained: Trained, aware: Awareness
) -> None:
    for p in trained.reference.profile.layers:
        errors = p.errors(aware)
        assert errors[0] > 0
        assert errors[-1] == pytest.approx(0, abs=1e-9)
        assert errors == sorted(errors, reverse=True)
        assert len(errors) == min(p.layer.rows, p.layer.columns) + 1
        assert p.sensitivity > 0


def test_the_reference_of_a_matrix_is_the_matrix(tmp_path: Path) -> None:
    upload(tmp_path, mixed_matrix())
    data = load_data(matrix_spec(), tmp_path)
    folder = tmp_path / "trial"
    folder.mkdir()
    spec = matrix_spec()
    resolved = resolve(spec, matrix=data.task if data.task.kind == "matrix" else None)
    listener = Listener()
    network = make_reference(
        spec,
        resolved,
        data,
        cache=tmp_path / "cache",
        folder=folder,
        threads=1,
        progress=listener,
    )
    assert torch.equal(network.get_parameter("matrix.weight"), mixed_matrix())
    phases = {update.phase for update in listener.updates}
    assert phases == {"decomposition", "profile", "menu"}
    assert load_reference(folder, resolved).answers is None


def test_the_measuring_of_layers_hears_that_it_shall_stop(digits: Data, tmp_path: Path) -> None:
    make(tiny(), digits, tmp_path / "one", Listener())
    with pytest.raises(StoppedError):
        make(tiny(), digits, tmp_path / "two", Listener(stop_after=1))
