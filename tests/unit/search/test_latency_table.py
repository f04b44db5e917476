"""What layers cost in time, by a table that is written down here."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.cost import dense_cost
from models.spec import MatrixTask
from models.structures import Dense, LowRank
from search.latency_table import WHOLE, DenseTime, LatencyTable, LayerShape, Prices, TimeCurve
from search.layer_costs import LayerCosts
from search.resolved import ResolvedSearch, check_in_time, least_times, resolve
from search.spec import BudgetUnreachable, SpecError
from tests.unit.search.builders import matrix_spec, tiny

MACS = (10, 30, 100)
RATIOS = (0.2, 0.4, 0.95)


def in_time(ratio: float = 0.5, **changes: Any) -> ResolvedSearch:
    return resolve(tiny(budget={"quantity": "latency", "ratio": ratio}, **changes))


def made_table(resolved: ResolvedSearch, *, network_seconds: float = 10.0) -> LatencyTable:
    """The second layer takes twice as long as the first, though it is smaller."""
    shapes = [LayerShape.of(layer) for layer in resolved.layers]
    return LatencyTable(
        batch=64,
        network_seconds=network_seconds,
        dense=tuple(
            DenseTime(shape=shape, seconds=float(index)) for index, shape in enumerate(shapes, 1)
        ),
        curves=tuple(
            TimeCurve(shape=shape, kind="low rank", macs=MACS, ratios=RATIOS) for shape in shapes
        ),
    )


def priced(ratio: float = 0.5, **changes: object) -> ResolvedSearch:
    resolved = in_time(ratio, **changes)
    return resolved.priced(Prices.of(made_table(resolved), resolved.layers))


def test_a_budget_in_time_is_a_share_of_the_dense_layers_time() -> None:
    resolved = in_time(0.25)
    assert (resolved.budget, resolved.dense_cost, resolved.smallest_cost) == (250_000, WHOLE, 0)


def test_layers_share_the_whole_by_what_they_take_and_not_by_their_macs() -> None:
    resolved = priced()
    first, second = resolved.layers
    assert dense_cost(first, "macs") > dense_cost(second, "macs")
    assert (resolved.dense(first), resolved.dense(second)) == (333_333, 666_667)


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=2))
def test_the_parts_are_the_whole_whatever_layers_take(seconds: list[float]) -> None:
    resolved = in_time()
    table = made_table(resolved)
    dense = [
        DenseTime(shape=one.shape, seconds=s) for one, s in zip(table.dense, seconds, strict=True)
    ]
    prices = Prices.of(table.model_copy(update={"dense": tuple(dense)}), resolved.layers)
    assert sum(prices.parts.values()) == WHOLE


@pytest.mark.parametrize(
    ("macs", "ratio"), [(1, 0.2), (10, 0.2), (20, 0.3), (30, 0.4), (65, 0.675), (100, 1), (999, 1)]
)
def test_a_price_lies_between_the_sizes_that_were_timed_and_never_wins_by_nothing(
    macs: int, ratio: float
) -> None:
    resolved = priced()
    layer = resolved.layers[1]
    # The last of them takes .95 of the dense time: it is run dense, and counts as that.
    expected = math.ceil(ratio * resolved.dense(layer))
    assert resolved.measured.estimate(layer, "low rank", macs) == pytest.approx(expected, abs=1)


def test_what_has_no_size_in_a_layer_costs_what_dense_does() -> None:
    resolved = priced()
    layer = resolved.layers[0]
    for kind in ("dense", "circulant"):
        assert resolved.measured.estimate(layer, kind, 1) == resolved.dense(layer)


def test_a_budget_below_what_the_layers_take_is_refused_with_the_least_and_the_layers() -> None:
    resolved = priced(0.19)
    assert sum(least_times(resolved).values()) == pytest.approx(0.2 * WHOLE, abs=2)
    spec = tiny(budget={"quantity": "latency", "ratio": 0.19})
    with pytest.raises(BudgetUnreachable, match=r"ratio of about 0\.2001.*layers\.1 at least 20%"):
        check_in_time(resolved, spec.budget)
    check_in_time(priced(0.21), tiny(budget={"quantity": "latency", "ratio": 0.21}).budget)


def test_one_of_several_budgets_is_refused_by_its_place() -> None:
    budget = {"quantity": "latency", "ratios": [0.5, 0.1]}
    spec = tiny(budget=budget)
    resolved = resolve(spec)
    prices = Prices.of(made_table(resolved), resolved.layers)
    with pytest.raises(BudgetUnreachable, match=r"0\.1000") as refused:
        check_in_time(resolved.priced(prices), spec.budget)
    assert refused.value.field == "budget.ratios[1]"


def test_rules_count_in_what_is_reachable() -> None:
    resolved = priced(layers={"rules": [{"match": "layers.1", "structures": ["dense"]}]})
    assert least_times(resolved)["layers.1"] == resolved.dense(resolved.layers[1])


def test_the_networks_time_is_predicted_from_its_layers() -> None:
    prices = priced().measured
    assert prices.network_share == pytest.approx(0.3)
    assert prices.of_network(WHOLE) == 1
    assert prices.of_network(WHOLE // 2) == pytest.approx(0.85)


def test_layers_are_shown_at_what_they_were_timed_or_counted() -> None:
    layer = resolve(tiny()).layers[0].model_copy(update={"structure": LowRank(rank=2)})
    assert LayerCosts("macs").of(layer) == (160, 1024)
    timed = LayerCosts("latency", {layer.name: 7}, {layer.name: 21})
    assert timed.of(layer) == (7, 21)
    assert timed.of(layer.model_copy(update={"name": "head", "structure": Dense()})) is None


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("space.starts", {"space": {"starts": ["answer", "scratch"]}}),
        ("space.learner.start", {"space": {"learner": {"start": "scratch"}}}),
        ("space.learner.structures", {"space": {"learner": {"structures": "competing"}}}),
        ("space.learner.metric", {"space": {"learner": {"metric": "uniform"}}}),
        ("compute.processes", {"compute": {"processes": 2}}),
    ],
)
def test_what_cannot_keep_a_budget_in_time_is_refused_with_its_field(
    field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(SpecError) as refused:
        in_time(**changes)
    assert refused.value.field == field


def test_a_single_matrix_has_no_budget_in_time() -> None:
    spec = matrix_spec(budget={"quantity": "latency", "ratio": 0.5})
    with pytest.raises(SpecError, match="macs or parameters"):
        resolve(spec, matrix=MatrixTask(rows=8, columns=8))


def test_a_number_of_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="of the latency give a ratio"):
        tiny(budget={"quantity": "latency", "absolute": 100})
