"""How a search decides in which way it trains: by asking, or by measuring once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.networks.build import build_network
from search import pace
from search.pace import FILE, choose, decided, execution_key, load_execution, race
from search.report import PLAIN, Execution, Report
from search.run import run_search
from search.spec import SearchSpec
from search.training import Problem
from tests.unit.search.builders import matrix_spec, mixed_matrix, tiny, upload
from tests.unit.search.conftest import Trained

FASTER, SLOWER = (0.5, 0.45, 0.55), (0.97, 0.9, 1.1)


def auto(**compute: Any) -> SearchSpec:
    fields = {"trials": 1, "epochs": 2, "reference_epochs": 2, "precision": "auto"}
    return tiny(compute=fields | compute, space={"baselines": []})


def chosen(spec: SearchSpec, trained: Trained, home: Path) -> Execution:
    problem = Problem(trained.data, None, spec.training, 0.01, 0)
    return choose(
        spec,
        lambda: build_network(trained.resolved.network, generator=torch.Generator()),
        problem,
        cache=home / "cache",
        folder=home / "trial",
        threads=1,
    )


def test_what_is_asked_for_is_not_measured() -> None:
    spec = tiny(compute={"precision": "bfloat16", "compile": True, "processes": 2})
    assert decided(spec) == Execution(precision="bfloat16", compiled=True, processes=2)
    assert decided(tiny()) == PLAIN
    assert decided(auto()) is None
    assert decided(tiny(compute={"compile": "auto"})) is None


def test_a_matrix_is_fitted_in_float32_unless_told_otherwise() -> None:
    assert decided(matrix_spec(compute={"precision": "auto", "compile": "auto"})) == PLAIN
    told = decided(matrix_spec(compute={"precision": "bfloat16"}))
    assert told is not None
    assert told.precision == "bfloat16"


@pytest.mark.parametrize(("ratio", "precision"), [(FASTER, "bfloat16"), (SLOWER, "float32")])
def test_the_precision_is_the_faster_one_by_a_clear_margin(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: Any, precision: str
) -> None:
    monkeypatch.setattr(pace, "race", lambda *_: (ratio, 0.1))
    found = chosen(auto(), trained, tmp_path)
    assert (found.precision, found.bfloat16_over_float32) == (precision, ratio)
    assert load_execution(tmp_path / "trial") == found


def test_a_choice_is_measured_once_for_the_same_search(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "race", lambda *_: (FASTER, 0.1))
    first = chosen(auto(), trained, tmp_path)
    monkeypatch.setattr(pace, "race", lambda *_: (SLOWER, 0.1))
    assert chosen(auto(), trained, tmp_path) == first  # resumed
    (tmp_path / "trial" / FILE).unlink()
    assert chosen(auto(), trained, tmp_path) == first  # submitted again
    assert chosen(auto(reference_epochs=3), trained, tmp_path / "other") != first


@pytest.mark.parametrize(
    ("seconds", "ratio", "generation", "compiled"),
    [
        (1e-3, FASTER, 30.0, False),  # a short training is not even tried
        (1e3, FASTER, 30.0, True),
        (1e3, SLOWER, 30.0, False),
        (1e3, FASTER, 1e6, False),  # never paid back
    ],
)
def test_code_is_generated_where_that_is_paid_back(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    ratio: Any,
    generation: float,
    *,
    compiled: bool,
) -> None:
    monkeypatch.setattr(pace, "seconds_of_a_step", lambda *_: seconds)
    monkeypatch.setattr(pace, "race", lambda *_: (ratio, generation))
    found = chosen(auto(precision="float32", compile="auto"), trained, tmp_path)
    assert found.compiled == compiled
    assert (found.compiled_over_eager is None) == (seconds < 1)
    assert found.bfloat16_over_float32 is None


def test_a_key_knows_what_a_steps_time_depends_on() -> None:
    key = execution_key(auto(), threads=1)
    assert key == execution_key(auto(trials=5), threads=1)
    assert key != execution_key(auto(), threads=2)
    assert key != execution_key(auto(compile="auto"), threads=1)


def test_a_file_that_cannot_be_read_is_measured_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"precision": "float8"}')
    assert load_execution(tmp_path) is None


def test_a_real_race_gives_the_quartiles_of_pairs(trained: Trained) -> None:
    problem = Problem(trained.data, None, trained.spec.training, 0.01, 0)
    (median, lower, upper), generation = race(
        lambda: build_network(trained.resolved.network, generator=torch.Generator()),
        problem,
        Execution(precision="bfloat16"),
        PLAIN,
    )
    assert 0 < lower <= median <= upper
    assert generation > 0


def test_all_trials_of_a_search_train_as_its_reference_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "race", lambda *_: (FASTER, 0.1))
    found = run_search(auto(), folder=tmp_path / "auto", threads=1)
    told = auto(precision="bfloat16")
    again = run_search(told, folder=tmp_path / "told", threads=1)
    assert found.report.execution.precision == "bfloat16"
    metrics = found.outcomes[0].metrics
    assert metrics is not None
    assert metrics["bfloat16_over_float32"] == FASTER[0]
    for one, other in zip(found.report.candidates, again.report.candidates, strict=True):
        assert one.validation_loss == other.validation_loss


def test_reports_from_before_there_was_a_choice_are_read(tmp_path: Path) -> None:
    upload(tmp_path, mixed_matrix())
    spec = matrix_spec(compute={"trials": 0}, space={"baselines": ["uniform_low_rank"]})
    report = run_search(spec, folder=tmp_path, threads=1).report
    old = report.model_dump(mode="json", exclude={"execution"})
    assert Report.model_validate(old) == report
