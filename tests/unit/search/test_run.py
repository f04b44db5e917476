"""A whole search in one process: what its report promises, its files keep."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import load_forms, load_network, load_spec
from models.cost import dense_cost, layer_cost, network_macs, network_parameters
from models.deployment import with_forms
from models.forms import ChosenForm, Form
from models.spec import NetworkSpec
from models.structured import DenseLinear
from models.structures import Dense, Gblr, Structure
from search.data import Data, load_data
from search.evaluation import network_cost
from search.forms import forms_file, load_choices, save_choices
from search.pareto import beats, hypervolume
from search.plan import planned_trials
from search.profile_report import ProfileReport
from search.progress import StoppedError
from search.report import Report, ReportRow
from search.resolved import ResolvedSearch, resolve
from search.run import SearchResult, run_search
from search.spec import SearchSpec, SpecError
from search.training import evaluate
from tests.unit.search.builders import (
    Listener,
    fetched_text,
    matrix_spec,
    mixed_matrix,
    mixer_spec,
    text_spec,
    tiny,
    upload,
)

SEVERAL = tiny(
    budget={"ratios": [0.3, 0.6]},
    repeats=2,
    space={"baselines": ["allocated_low_rank", "block_diagonal"]},
)
SPECS = {
    "digits": tiny(repeats=2),
    "matrix": matrix_spec(space={"structures": ["low rank", "block diagonal"]}),
    "mixer": mixer_spec(),
    "text": text_spec(),
    "several": SEVERAL,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searches")
    upload(folder / "uploads", mixed_matrix())
    fetched_text(folder)
    return folder


@pytest.fixture(scope="module", params=list(SPECS))
def search(request: pytest.FixtureRequest, home: Path) -> tuple[SearchSpec, SearchResult]:
    spec = SPECS[request.param]
    return spec, run(spec, home, request.param)


def run(spec: SearchSpec, home: Path, name: str) -> SearchResult:
    return run_search(
        spec, folder=home / name, uploads=home / "uploads", threads=1, fetched=home / "fetched"
    )


def loaded(spec: SearchSpec, home: Path) -> Data:
    return load_data(spec, home / "uploads", home / "fetched")


def resolved(spec: SearchSpec, home: Path) -> ResolvedSearch:
    task = loaded(spec, home).task
    return resolve(spec, matrix=task if task.kind == "matrix" else None)


def rows(report: Report) -> list[ReportRow]:
    return [report.reference, *report.baselines, *report.candidates]


Found = tuple[SearchSpec, SearchResult]


def test_the_report_has_a_row_for_every_trial_but_repeats(search: Found) -> None:
    spec, found = search
    expected = [t.number for t in planned_trials(spec) if not t.repeat][:-1]
    assert [row.number for row in rows(found.report)] == expected
    assert all(outcome.state == "COMPLETE" for outcome in found.outcomes.values())
    assert Report.model_validate_json(found.report.model_dump_json()) == found.report


def test_every_network_found_is_within_the_budget(search: Found, home: Path) -> None:
    spec, found = search
    report = found.report
    assert report.budget == resolved(spec, home).budget
    for row in rows(report):
        if row.kind == "reference":
            assert (row.cost, row.budget) == (report.dense_cost, None)
        else:
            assert row.budget_index is not None
            assert row.budget == resolved(spec, home).budgets[row.budget_index]
            assert row.cost <= row.budget
    assert report.winner.cost <= report.budget


def test_candidates_use_the_budget_to_its_last_step(search: Found) -> None:
    report = search[1].report
    for row in report.candidates:
        assert row.smallest_step is None or report.budget_of(row) - row.cost < row.smallest_step


def test_the_reports_numbers_are_those_of_the_exported_files(search: Found, home: Path) -> None:
    spec, found = search
    data = loaded(spec, home)
    for row in rows(found.report):
        folder = found.folders[row.number] / "export"
        network, exported = load_network(folder), load_spec(folder)
        assert exported == row.network
        assert evaluate(network, data, data.validation) == pytest.approx(
            (row.validation_loss, row.validation_accuracy)
        )
        if row.test_loss is not None:
            assert evaluate(network, data, data.test)[0] == pytest.approx(row.test_loss)
        cost = network_cost(exported, resolved(spec, home))
        assert (cost.cost, cost.macs, cost.parameters) == (row.cost, row.macs, row.parameters)
        assert row.network_macs == network_macs(exported)
        assert row.network_parameters == network_parameters(exported)
        assert row.network_parameters == sum(p.numel() for p in network.parameters())


def test_the_test_part_is_read_for_each_budgets_best_candidate_alone(search: Found) -> None:
    report = search[1].report
    assert report.best_candidate == min(report.candidates, key=lambda row: row.validation_loss)
    best = [
        min(
            (row for row in report.candidates if row.budget_index == result.index),
            key=lambda row: row.validation_loss,
        ).number
        for result in report.results
    ]
    assert [result.best_candidate for result in report.results] == best
    read = [row.number for row in report.candidates if row.test_loss is not None]
    assert read == best
    assert all(row.test_loss is not None for row in (report.reference, *report.baselines))


def test_the_winner_has_the_least_validation_loss(search: Found) -> None:
    report = search[1].report
    found = [*report.baselines, *report.candidates]
    assert report.winner == min(found, key=lambda row: row.validation_loss)
    for result in report.results:
        under = [row for row in found if row.budget_index == result.index]
        assert result.winner == min(under, key=lambda row: row.validation_loss).number
        assert result.winner in report.winners
        assert all(row.budget == result.budget for row in under)


def test_the_front_and_what_it_covers_are_in_the_report(search: Found) -> None:
    report = search[1].report
    assert report.reference_point is not None
    assert report.hypervolume is not None
    points = {
        row.number: (row.validation_loss, row.cost / report.dense_cost, row.latency_ratio)
        for row in report.rows
    }
    leading = [n for n, p in points.items() if not any(beats(q, p) for q in points.values())]
    assert list(report.front) == leading
    assert report.hypervolume == hypervolume(list(points.values()), report.reference_point)
    assert 0 < report.hypervolume < math.prod(report.reference_point)


def test_a_report_from_before_several_budgets_is_still_read(search: Found) -> None:
    report = search[1].report
    told = report.model_dump(mode="json")
    for name in ("results", "front", "reference_point", "hypervolume"):
        del told[name]
    for row in (told["reference"], *told["baselines"], *told["candidates"], told["winner"]):
        del row["budget"], row["budget_index"]
    del told["best_candidate"]["budget"], told["best_candidate"]["budget_index"]
    old = Report.model_validate(told)
    assert old.winners == {report.winner.number}
    assert old.budget_of(old.winner) == report.budget


def test_best_candidate_and_winner_are_exported_for_plain_torch(search: Found, home: Path) -> None:
    spec, found = search
    data = loaded(spec, home)
    numbers = {r.best_candidate for r in found.report.results} | found.report.winners
    for number in numbers - {None}:
        assert number is not None
        folder = found.folders[number] / "export"
        program = torch.export.load(folder / "network.pt2").module()
        inputs = data.validation.inputs[:7]
        with torch.no_grad():
            torch.testing.assert_close(program(inputs), load_network(folder)(inputs))


def test_repeats_give_a_mean_and_a_deviation(search: Found) -> None:
    spec, found = search
    best = {result.best_candidate for result in found.report.results}
    for row in rows(found.report):
        repeated = spec.repeats > 1 and (row.kind == "baseline" or row.number in best)
        assert row.repeats == (spec.repeats if repeated else 1)
        assert (row.validation_loss_deviation is not None) == repeated
        if row.validation_loss_mean is not None and row.validation_loss_deviation is not None:
            spread = abs(row.validation_loss - row.validation_loss_mean)
            assert row.validation_loss_deviation == pytest.approx(spread * 2**0.5)


def test_the_same_search_twice_finds_the_same(search: Found, home: Path) -> None:
    spec, found = search
    again = run(spec, home, f"{spec.model.kind}{len(found.report.results)} again")
    for one, other in zip(rows(found.report), rows(again.report), strict=True):
        assert structures(one.network) == structures(other.network)
        assert one.validation_loss == other.validation_loss


def test_every_structured_layer_has_a_form_in_the_row_and_beside_the_network(
    search: Found, home: Path
) -> None:
    spec, found = search
    inputs = loaded(spec, home).validation.inputs[:5]
    for row in rows(found.report):
        folder = found.folders[row.number] / "export"
        structured = [n for n, s in structures(row.network).items() if not isinstance(s, Dense)]
        assert list(row.forms) == structured
        assert load_forms(folder) == row.forms
        network = load_network(folder)
        with torch.inference_mode():
            run = with_forms(network, row.forms)(inputs)
            torch.testing.assert_close(run, network(inputs), rtol=1e-4, atol=1e-4)


def test_a_repeat_of_a_baseline_runs_in_the_forms_of_the_first(home: Path) -> None:
    spec = SPECS["digits"]
    found = run(spec, home, "digits")
    planned = {trial.number: trial for trial in planned_trials(spec)}
    first = next(row for row in found.report.baselines if row.name == "uniform_low_rank")
    repeat = next(
        number
        for number, trial in planned.items()
        if trial.repeat and trial.family == "uniform_low_rank"
    )
    folder = found.folders[repeat] / "export"
    assert structures(load_spec(folder)) == structures(first.network)
    assert not (folder / "forms.json").exists()  # which only a measured network has
    network, inputs = load_network(folder), loaded(spec, home).validation.inputs[:5]
    for form in ("structured", "dense"):
        forms: dict[str, Form] = dict.fromkeys(first.forms, form)
        fast = with_forms(network, forms)
        for name in forms:
            assert isinstance(fast.get_submodule(name), DenseLinear) == (form == "dense")
        with torch.inference_mode():
            torch.testing.assert_close(fast(inputs), network(inputs), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        run_as_first = with_forms(network, first.forms)(inputs)
        torch.testing.assert_close(run_as_first, network(inputs), rtol=1e-4, atol=1e-4)


def test_the_same_search_again_takes_the_forms_that_were_chosen(tmp_path: Path) -> None:
    spec = tiny(space={"baselines": ["uniform_low_rank"]}, compute={"trials": 1, "epochs": 2})
    first = run_search(spec, folder=tmp_path, threads=1).report
    kept = forms_file(spec, cache=tmp_path / "cache", threads=1)
    choices = load_choices(kept)
    uses = [one.use for one in choices]
    assert len(set(uses)) == len(uses)
    # Whatever was measured, the other choice: were anything measured again, it would be lost.
    others = tuple(ChosenForm(use=one.use, form=other(one)) for one in choices)
    save_choices(kept, others)
    named = spec.model_copy(update={"name": "the same", "tags": ("again",)})
    second = run_search(named, folder=tmp_path, threads=1).report
    assert load_choices(kept) == others
    swapped = {one.use.structure: one.form for one in others}
    for before, after in zip(rows(first), rows(second), strict=True):
        assert before.network == after.network
        for layer in after.network.layers:
            if layer.name in after.forms:
                assert after.forms[layer.name] == swapped[layer.structure]
                assert after.forms[layer.name] != before.forms[layer.name]


def other(chosen: ChosenForm) -> Form:
    if chosen.form != "dense":
        return "dense"
    return "sliced" if isinstance(chosen.use.structure, Gblr) else "structured"


def test_other_searches_machines_and_threads_choose_for_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = forms_file(tiny(), cache=tmp_path, threads=1)
    assert file == forms_file(tiny(name="another name"), cache=tmp_path, threads=1)
    assert file != forms_file(tiny(), cache=tmp_path, threads=2)
    assert file != forms_file(tiny(seed=1), cache=tmp_path, threads=1)
    monkeypatch.setattr("search.forms.version", lambda name: f"another {name}")
    assert file != forms_file(tiny(), cache=tmp_path, threads=1)


def test_a_file_of_choices_that_cannot_be_read_is_measured_anew(tmp_path: Path) -> None:
    file = tmp_path / "forms.json"
    assert load_choices(file) == ()
    file.write_text('[{"use": {}, "form": "dense"}]')
    assert load_choices(file) == ()


def test_reports_from_before_all_forms_were_kept_are_read(search: Found) -> None:
    row = search[1].report.winner
    old = row.model_dump(mode="json", exclude={"forms"})
    name = row.network.layers[0].name
    assert ReportRow.model_validate(old | {"run_dense": [name]}).forms == {name: "dense"}
    assert ReportRow.model_validate(old).forms == {}


def structures(network: NetworkSpec) -> dict[str, Structure]:
    return {layer.name: layer.structure for layer in network.layers}


def test_a_search_stops_when_asked_to(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run_search(tiny(), folder=tmp_path, threads=1, progress=Listener(stop_after=20))


def test_a_search_without_its_data_ends_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"state-of-the-union is not in .*; `make data` fetches"):
        run_search(text_spec(), folder=tmp_path, threads=1, fetched=tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layers": {"include": ["nothing"]}}, "no layer"),
        ({"budget": {"ratio": 0.001}}, "rank 1 in all 2 eligible layers"),
    ],
)
def test_a_spec_that_can_never_work_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SpecError, match=sentence):
        run_search(tiny(**changes), folder=tmp_path, threads=1)
    assert not list(tmp_path.iterdir())


def test_one_step_an_epoch_still_holds_the_budget(tmp_path: Path) -> None:
    spec = tiny(
        training={"batch": 5000},
        space={"baselines": []},
        compute={"trials": 1, "epochs": 2, "reference_epochs": 1},
    )
    report = run_search(spec, folder=tmp_path, threads=1).report
    assert report.candidates[0].cost <= report.budget


def test_the_reference_tells_the_profile(search: tuple[SearchSpec, SearchResult]) -> None:
    spec, found = search
    profile = found.outcomes[0].profile
    assert profile is not None
    assert ProfileReport.model_validate_json(profile.model_dump_json()) == profile
    assert len(profile.allocations) == len(spec.budget.ratios or (None,))
    for one in profile.allocations:
        assert sum(layer.cost for layer in one.layers) == one.cost <= one.budget
        assert one.bound <= one.harm * (1 + 1e-6)
    allocation = profile.allocations[0]
    assert {layer.name for layer in profile.layers} == set(found.report.eligible)
    for layer, chosen in zip(profile.layers, allocation.layers, strict=True):
        (curve,) = [curve for curve in layer.menu if curve.kind == chosen.kind]
        assert len(curve.macs) <= 33
        assert chosen.structure.in_words() in curve.structures
    assert {curve.kind for layer in profile.layers for curve in layer.menu} <= {
        "dense",
        *spec.space.structures,
    }


@pytest.mark.parametrize(
    "rules",
    [
        [{"match": "layers.0", "structures": ["block diagonal"], "at_most": 0.3}],
        [{"match": "*", "structures": ["low rank", "block diagonal"]}],
    ],
)
def test_rules_hold_in_every_trial(rules: list[dict[str, object]], tmp_path: Path) -> None:
    families = ["uniform_low_rank", "learned_low_rank", "allocated_structures"]
    spec = tiny(layers={"rules": rules}, space={"baselines": families})
    found = run(spec, tmp_path, "ruled")
    bound = resolve(spec).rules
    for number, outcome in found.outcomes.items():
        if outcome.network is None or number == 0:
            continue
        cost = network_cost(outcome.network, resolve(spec)).cost
        assert cost <= resolve(spec).budget
        for layer in outcome.network.layers:
            if layer.name in bound:
                assert layer.structure.kind in ("block_diagonal", "low_rank")
                assert layer_cost(layer, "macs") <= bound[layer.name].limit(
                    dense_cost(layer, "macs")
                )
    assert all(outcome.state == "COMPLETE" for outcome in found.outcomes.values())


def test_a_search_in_which_everything_fails_says_so_and_names_no_winner(tmp_path: Path) -> None:
    spec = tiny(
        compute={"trials": 1, "epochs": 1, "reference_epochs": 1},
        training={"samples": 256, "tuning_rate": 1e30},
        space={"baselines": []},
    )
    with pytest.raises(RuntimeError, match=r"nothing within .*; candidate 1: the loss is not fin"):
        run_search(spec, folder=tmp_path, threads=1)
