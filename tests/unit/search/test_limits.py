"""Ceilings beside the budget: who exceeds one is told so to the sampler, and never wins."""

from pathlib import Path
from typing import Any

import pytest

from models.cost import network_parameters
from models.structures import LowRank
from search.limits import exceeded, excesses
from search.resolved import resolve
from search.run import run_search
from search.sampler import Limits
from search.sampling import propose
from search.spec import LearnerSettings, SpecError
from search.study import constraints
from search.trial import FinishedTrial
from tests.unit.search.builders import finished, tiny
from tests.unit.search.test_sampling import candidate, searched


def told(number: int, loss: float, settings: LearnerSettings, **metrics: float) -> FinishedTrial:
    planned = finished(number).planned
    return FinishedTrial(planned, "COMPLETE", settings, loss, (), None, metrics)


def test_an_excess_is_the_share_above_the_ceiling() -> None:
    limits = Limits(network_parameters=200, latency_ratio=0.5)
    metrics = {"network_parameters": 250.0, "latency_ratio": 0.4, "cost": 9.0, "budget": 10.0}
    assert excesses(limits, metrics) == pytest.approx(
        {"cost": -0.1, "network_parameters": 0.25, "latency_ratio": -0.2}
    )
    assert exceeded(limits, metrics) == ("network_parameters",)
    assert exceeded(Limits(), metrics | {"cost": 11.0}) == ("cost",)


def test_what_was_not_measured_is_not_held_against_anybody() -> None:
    assert exceeded(Limits(latency_ratio=0.5), {"latency_ratio": None}) == ()


def test_the_budget_is_a_constraint_only_where_somebody_exceeded_it() -> None:
    within = told(1, 0.5, LearnerSettings(), cost=9, budget=10)
    above = told(2, 0.5, LearnerSettings(), cost=12, budget=10)
    assert constraints([within], searched()) == {1: {}}
    assert constraints([within, above], searched()) == {
        1: {"cost": pytest.approx(-0.1)},
        2: {"cost": pytest.approx(0.2)},
    }


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_the_sampler_keeps_away_from_what_exceeds_a_ceiling(sampler: str) -> None:
    """Output starts have the lower loss, but too many parameters."""
    space: dict[str, Any] = {"baselines": [], "starts": ["uniform", "output"]}
    spec = searched(
        space=space,
        sampler={"name": sampler},
        limits={"network_parameters": 600},
        compute={"trials": 40},
    )
    history = []
    for number in range(1, 25):
        start, parameters = (("uniform", 500), ("output", 900))[number % 2]
        made = LearnerSettings.model_validate({"start": start, "shrink": 0.01 + number / 60})
        loss = (1.0 if start == "uniform" else 0.5) + number / 1000
        history.append(told(number, loss, made, network_parameters=parameters))
    starts = [propose(spec, candidate(number), history) for number in range(25, 35)]
    assert sum(found is not None and found.start == "uniform" for found in starts) >= 8


def test_what_exceeds_a_ceiling_is_not_repeated() -> None:
    spec = searched(limits={"latency_ratio": 1.0})
    history = [
        told(1, 0.2, LearnerSettings(group=1), latency_ratio=1.5),
        told(2, 0.3, LearnerSettings(group=2), latency_ratio=0.9),
    ]
    assert propose(spec, candidate(20, repeat=1), history) == LearnerSettings(group=2)


def test_a_ceiling_that_cannot_be_kept_is_refused_with_one_that_can() -> None:
    found = resolve(tiny())
    cheapest = {layer.name: LowRank(rank=1) for layer in found.layers}
    least = network_parameters(found.network.with_structures(dict(cheapest)))
    resolve(tiny(limits={"network_parameters": least}))
    with pytest.raises(SpecError, match=f"still has {least}") as refused:
        resolve(tiny(limits={"network_parameters": least - 1}))
    assert refused.value.field == "limits.network_parameters"


def test_where_nothing_keeps_the_limits_nothing_wins(tmp_path: Path) -> None:
    spec = tiny(
        limits={"latency_ratio": 1e-6},
        compute={"trials": 1, "epochs": 1, "reference_epochs": 1},
        space={"baselines": ["allocated_low_rank"]},
    )
    found = run_search(spec, folder=tmp_path, threads=1)
    outcome = found.outcomes[2]
    assert outcome.metrics is not None
    assert outcome.metrics["latency_ratio"] > 1e-6
    report = found.report
    assert [row.exceeds for row in report.rows] == [(), *[("latency_ratio",)] * 2]
    assert report.best_candidate is None
    assert report.winner == report.reference
    assert (report.results[0].winner, report.front) == (None, (0,))
