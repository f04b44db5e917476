"""What is found under a budget in time, by a clock that counts numbers in the place of seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.structures import BlockDiagonal, Dense, LowRank
from models.structures.sizes import Kind
from search.baselines import build_baseline
from search.candidate import learn
from search.clock import Clock, times_key
from search.compute import CPU, Engine
from search.forms import load_choices
from search.latency_table import WHOLE, Prices
from search.menu_making import make_menu
from search.progress import Silent
from search.reference import Reference
from search.resolved import ResolvedSearch, resolve
from search.settling import settle_dense
from search.spec import BudgetUnreachable, BuiltBaseline, LearnerSettings
from search.tightening import tightest
from search.time_budget import settle_in_time
from search.training import CHECKPOINT, Course, Problem
from search.within_time import corrected
from tests.unit.search.builders import tiny
from tests.unit.search.conftest import Trained

OVERHEAD = 60  # numbers that take as long as a call does


def count(layer: nn.Module, _inputs: Tensor) -> float:
    return OVERHEAD + sum(value.numel() for value in layer.parameters())


def counting_clock(folder: Path) -> Clock:
    return Clock(CPU, folder / "lock", folder / "kept", folder / "forms.json", 64, timer=count)


def in_time(
    trained: Trained, folder: Path, ratio: float, **changes: object
) -> tuple[Clock, ResolvedSearch, Reference]:
    """The reference of the other tests, its layers timed by the clock, under a budget in time."""
    spec = tiny(budget={"quantity": "latency", "ratio": ratio}, **changes)
    resolved, clock = resolve(spec), counting_clock(folder)
    kinds: tuple[Kind, ...] = (
        "low rank",
        "block diagonal",
        "Monarch, rank 1",
        "BTT, 4 x 4",
        "BTT, 8 x 8",
    )
    inputs = trained.data.validation.inputs
    table = clock.table(resolved.network, resolved.layers, kinds, inputs, Silent())
    # Dense layers by the same count.
    dense = tuple(
        one.model_copy(update={"seconds": OVERHEAD + one.shape.rows * (one.shape.columns + 1)})
        for one in table.dense
    )
    table = table.model_copy(update={"dense": dense})
    resolved = resolved.priced(Prices.of(table, resolved.layers))
    measured = trained.reference.profile
    menu = make_menu(measured, resolved, resolved.budgets, Silent(), kept=folder / "menu.json")
    return clock, resolved, replace(trained.reference, profile=replace(measured, menu=menu))


@pytest.mark.parametrize("ratio", [0.7, 0.5])
@pytest.mark.parametrize(
    "name",
    [
        "dense_shrunk",
        "uniform_svd",
        "uniform_low_rank",
        "allocated_low_rank",
        "block_diagonal",
        "btt",
        "monarch",
        "allocated_structures",
    ],
)
def test_every_plain_family_is_within_the_time(
    name: BuiltBaseline, ratio: float, trained: Trained, tmp_path: Path
) -> None:
    clock, resolved, reference = in_time(trained, tmp_path, ratio)
    try:
        spec, network = build_baseline(
            name,
            reference.network,
            reference.profile,
            resolved,
            generator=torch.Generator().manual_seed(0),
            clock=clock,
        )
    except BudgetUnreachable:
        assert name not in ("dense_shrunk", "uniform_low_rank", "allocated_structures")
        return
    times = clock.costs(spec, resolved)
    assert sum(times.values()) <= resolved.budget
    for layer in spec.layers:
        # What is no faster than dense stays dense.
        if layer.name in times and not isinstance(layer.structure, Dense):
            assert times[layer.name] < resolved.dense(layer)
        assert network.get_submodule(layer.name).spec == layer.structure


@pytest.mark.parametrize("structures", ["menu", "rectangles"])
def test_a_candidate_is_within_the_time(structures: str, trained: Trained, tmp_path: Path) -> None:
    clock, resolved, reference = in_time(trained, tmp_path, 0.6)
    settings = LearnerSettings.model_validate(
        {"structures": structures, "pieces": "ranks", "gaudi": False}
    )
    settled = settle_in_time(reference, resolved, clock)
    if structures == "rectangles":
        settled = settle_dense(settled, "answer")
    problem = Problem(
        trained.data, reference.teacher, trained.spec.training, 5e-4, 0, Engine(device=CPU)
    )
    course = Course(problem, 2, tmp_path / CHECKPOINT, Silent())
    found = learn(settled, settings, course, clock=clock)
    times = clock.costs(found.spec, resolved)
    assert 0.6 * resolved.budget < sum(times.values()) <= resolved.budget
    if structures == "rectangles":
        kinds = {layer.structure.kind for layer in found.spec.layers}
        assert kinds <= {"dense", "low_rank"}


def test_layers_under_rules_take_what_they_were_timed_at(trained: Trained, tmp_path: Path) -> None:
    rules = [{"match": "layers.1", "structures": ["dense"]}]
    clock, resolved, reference = in_time(trained, tmp_path, 0.7, layers={"rules": rules})
    settled = settle_in_time(reference, resolved, clock)
    assert settled.resolved.eligible == ("layers.0",)
    assert settled.resolved.budget == resolved.budget - resolved.measured.parts["layers.1"]


def test_a_narrower_dense_layer_is_timed_beside_the_one_it_stands_for(
    trained: Trained, tmp_path: Path
) -> None:
    clock, resolved, _ = in_time(trained, tmp_path, 0.5)
    layers = {layer.name: layer for layer in resolved.network.layers}
    half = layers["layers.0"].model_copy(update={"rows": 8})
    network = resolved.network.model_copy(
        update={"layers": (half, *(one for name, one in layers.items() if name != half.name))}
    )
    times, parts = clock.costs(network, resolved), resolved.measured.parts
    share = (OVERHEAD + 8 * 65) / (OVERHEAD + 16 * 65)
    assert times["layers.0"] == pytest.approx(share * parts["layers.0"], abs=1)
    assert times["layers.1"] == parts["layers.1"]


def test_nothing_is_timed_twice_and_the_last_trial_knows_the_forms(
    trained: Trained, tmp_path: Path
) -> None:
    clock, resolved, _ = in_time(trained, tmp_path, 0.5)
    network = resolved.network.with_structures({"layers.0": LowRank(rank=2)})
    before = clock.costs(network, resolved)
    (known,) = load_choices(clock.forms)
    assert (known.use.structure, known.form) == (LowRank(rank=2), "structured")

    def never(layer: nn.Module, _inputs: Tensor) -> float:
        raise AssertionError(f"{layer} is timed again")

    assert replace(clock, timer=never).costs(network, resolved) == before
    assert sum(clock.costs(resolved.network, resolved).values()) == WHOLE


def test_times_of_another_machine_or_network_are_not_taken(trained: Trained) -> None:
    network = trained.resolved.network
    key = times_key(network, ["layers.0"], {"low rank"}, threads=1, device=CPU)
    others = [
        times_key(network, ["layers.0"], {"low rank"}, threads=2, device=CPU),
        times_key(network, ["layers.1"], {"low rank"}, threads=1, device=CPU),
        times_key(network, ["layers.0"], {"low rank", "CP"}, threads=1, device=CPU),
    ]
    assert key not in others
    assert key == times_key(network, ["layers.0"], {"low rank"}, threads=1, device=CPU)


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.3, 3.0])
def test_the_tightest_target_is_found_whatever_the_estimate_is_off_by(slope: float) -> None:
    asked = []

    def attempt(target: int) -> tuple[int, int]:
        asked.append(target)
        return target, int(slope * target) - 1000

    found = tightest(1000, attempt)
    assert found is not None
    assert slope * found <= 1001
    assert slope * found > 960 or found == 1000
    assert len(asked) <= 16


def test_where_nothing_fits_nothing_is_found() -> None:
    assert tightest(1000, lambda target: (target, 100)) is None


@pytest.mark.parametrize("name", ["allocated_structures", "allocated_low_rank"])
def test_a_size_that_was_thought_to_be_faster_than_it_is_does_not_stay_in_the_way(
    name: BuiltBaseline, trained: Trained, tmp_path: Path
) -> None:
    clock, resolved, reference = in_time(trained, tmp_path, 0.6)
    prices = resolved.measured
    # One size in each curve was timed at a hundredth of what it takes.
    curves = [
        curve.model_copy(
            update={"ratios": tuple(r / 100 if i == 1 else r for i, r in enumerate(curve.ratios))}
        )
        for curve in prices.table.curves
    ]
    table = prices.table.model_copy(update={"curves": tuple(curves)})
    mistaken = resolved.priced(Prices.of(table, resolved.layers))
    spec, _ = build_baseline(
        name,
        reference.network,
        reference.profile,
        mistaken,
        generator=torch.Generator().manual_seed(0),
        clock=clock,
    )
    assert 0.7 * resolved.budget < sum(clock.costs(spec, resolved).values()) <= resolved.budget


def test_what_was_timed_corrects_the_curve_of_its_kind_alone(
    trained: Trained, tmp_path: Path
) -> None:
    _, resolved, _ = in_time(trained, tmp_path, 0.6)
    network = resolved.network.with_structures({"layers.0": BlockDiagonal(blocks=2)})
    layer, part = resolved.layers[0], resolved.measured.parts["layers.0"]
    new = corrected(resolved.measured, network, resolved, {"layers.0": part // 4})
    macs = BlockDiagonal(blocks=2).mac_count(rows=16, columns=64)
    assert new.estimate(layer, "block diagonal", macs) == pytest.approx(part // 4, abs=1)
    before = {(one.shape, one.kind): one for one in resolved.measured.table.curves}
    changed = [one for one in new.table.curves if one != before[one.shape, one.kind]]
    assert [one.kind for one in changed] == ["block diagonal"]


def test_a_networks_time_is_that_of_its_layers_and_of_what_lies_between(
    trained: Trained, tmp_path: Path
) -> None:
    _, resolved, _ = in_time(trained, tmp_path, 0.5)
    clock = replace(counting_clock(tmp_path), kept=tmp_path / "anew")
    inputs = trained.data.validation.inputs
    table = clock.table(resolved.network, resolved.layers, ["low rank"], inputs, Silent())
    assert len(table.dense) == 2
    assert 0 < sum(one.seconds for one in table.dense) < table.network_seconds
