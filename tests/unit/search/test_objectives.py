"""Several objectives: each candidate has a budget of its own, and the sampler seeks the front."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from search.plan import PlannedTrial, planned_trials, prerequisites, startable
from search.pruning import should_prune
from search.run import run_search
from search.sampling import propose
from search.spec import LearnerSettings, SearchSpec
from search.trial import FinishedTrial
from tests.unit.search.builders import finished, tiny

OBJECTIVES = {
    "objectives": ["validation_loss", "cost"],
    "budget": {"ratios": [0.3, 0.6]},
    "compute": {"trials": 8, "parallel": 2},
    "space": {"baselines": ["allocated_low_rank"]},
}


def several(**changes: Any) -> SearchSpec:
    return tiny(**OBJECTIVES | changes)


def told(number: int, share: float, loss: float, **metrics: float) -> FinishedTrial:
    planned = PlannedTrial(number, "candidate", budget_index=1, drawn=True)
    metrics = {"cost": 1000 * share} | metrics
    made = LearnerSettings(share=share)
    return FinishedTrial(planned, "COMPLETE", made, loss, (), None, metrics)


def candidates(spec: SearchSpec) -> list[PlannedTrial]:
    return [t for t in planned_trials(spec) if t.kind == "candidate" and not t.repeat]


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"ratio": 0.4}},
        {"objectives": ["cost"]},
        {"objectives": []},
        {"objectives": ["validation_loss", "cost", "cost"]},
        {"sampler": {"name": "grid"}},
        {"warm_start": "srch_" + "0" * 32},
    ],
)
def test_what_several_objectives_cannot_be_combined_with_is_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError):
        several(**changes)


def test_a_share_is_given_only_where_it_is_drawn() -> None:
    space = {"baselines": [], "learner": {"share": 0.4}}
    with pytest.raises(ValidationError, match="drawn for several objectives"):
        tiny(space=space)
    spec = several(space=space)
    first = propose(spec, candidates(spec)[0], [])
    assert first is not None
    assert first.share == 0.4


def test_candidates_are_as_many_as_asked_for_and_baselines_of_every_budget() -> None:
    names = [trial.name for trial in planned_trials(several(repeats=2))]
    assert names == [
        *("reference", "allocated_low_rank at 30 %", "allocated_low_rank at 60 %"),
        *(f"candidate {number}" for number in range(3, 11)),
        *("allocated_low_rank at 30 % (repeat 1)", "winner at 30 % (repeat 1)"),
        *("allocated_low_rank at 60 % (repeat 1)", "winner at 60 % (repeat 1)"),
        "measurement",
    ]


def test_the_repeats_of_every_budget_wait_for_all_candidates() -> None:
    spec = several(repeats=2)
    trials = planned_trials(spec)
    for number in (12, 14):
        needed = [other.number for other in prerequisites(trials[number], trials, spec)]
        assert needed == [0, *range(3, 11)]
        assert trials[number] not in startable(trials, set(range(10)), spec)
        assert trials[number] in startable(trials, set(range(11)), spec)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_shares_are_drawn_between_the_lowest_and_the_highest(sampler: str) -> None:
    spec = several(sampler={"name": sampler})
    history: list[FinishedTrial] = []
    shares = []
    for planned in candidates(spec):
        found = propose(spec, planned, history)
        assert found is not None
        assert found.share is not None
        assert found == propose(spec, planned, history[::-1])
        shares.append(found.share)
        planned_told = told(planned.number, found.share, 1 / found.share)
        history.append(
            FinishedTrial(planned, "COMPLETE", found, 1.0, (), None, planned_told.metrics)
        )
    assert shares[0] == pytest.approx((0.3 * 0.6) ** 0.5)
    assert all(0.3 <= share <= 0.6 for share in shares)
    assert len(set(shares)) >= 4


def test_what_was_not_measured_in_an_objective_is_not_told() -> None:
    spec = several(objectives=["validation_loss", "latency"])
    last = candidates(spec)[-1]
    timed = [told(n, 0.3 + n / 100, 1.0 / n, latency_ratio=float(n)) for n in range(3, 8)]
    untimed = told(8, 0.5, 0.0)
    assert propose(spec, last, timed) == propose(spec, last, [*timed, untimed])


def test_nothing_is_pruned_under_budgets_that_differ() -> None:
    spec = several()
    good = [finished(number, loss=0.1, curve=((10, 0.1),)) for number in range(3, 8)]
    assert not should_prune(spec, candidates(spec)[-1], good, [(10, 99.0)])


def test_a_budgets_winner_is_the_best_of_those_below_it() -> None:
    spec = several(repeats=2)
    history = [told(3, 0.35, 0.2), told(4, 0.3, 0.4), told(5, 0.6, 0.1)]
    winners = [t for t in planned_trials(spec) if t.repeat and t.kind == "candidate"]
    found = [propose(spec, planned, history) for planned in winners]
    assert [one.share for one in found if one] == [0.3, 0.6]


def test_every_candidate_keeps_the_budget_that_was_drawn_for_it(tmp_path: Path) -> None:
    spec = several(
        objectives=["validation_loss", "cost", "latency"],
        compute={"trials": 3, "epochs": 2, "reference_epochs": 1},
        repeats=2,
    )
    found = run_search(spec, folder=tmp_path, threads=1)
    report = found.report
    settings = {trial.planned.number: trial.settings for trial in found.history}
    for row in report.candidates:
        made, metrics = settings[row.number], found.outcomes[row.number].metrics
        assert made is not None
        assert made.share is not None
        assert row.budget == int(made.share * report.dense_cost + 1e-6)
        assert row.budget_index is None
        assert row.cost <= row.budget
        assert row.smallest_step is None or row.budget - row.cost < row.smallest_step
        assert metrics is not None
        assert metrics["latency_ratio"] > 0
    for result in report.results:
        under = [
            row
            for row in (*report.baselines, *report.candidates)
            if row.budget_index == result.index
            or (row.budget_index is None and row.cost <= result.budget)
        ]
        assert result.winner == min(under, key=lambda row: row.validation_loss).number
