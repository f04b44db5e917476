"""Which trials a search consists of, and what each must wait for."""

import pytest

from search.plan import PlannedTrial, first_candidate, planned_trials, prerequisites, startable
from search.spec import SearchSpec
from tests.unit.search.builders import matrix_spec, tiny

BASELINES = ["uniform_low_rank", "block_diagonal"]


def plan(*, trials: int = 3, repeats: int = 1, parallel: int = 1) -> SearchSpec:
    return tiny(
        compute={"trials": trials, "parallel": parallel},
        space={"baselines": BASELINES},
        repeats=repeats,
    )


def waits_for(spec: SearchSpec, number: int) -> list[int]:
    trials = planned_trials(spec)
    return [other.number for other in prerequisites(trials[number], trials, spec)]


def test_reference_baselines_candidates_and_measurement_in_this_order() -> None:
    trials = planned_trials(plan())
    assert [t.number for t in trials] == list(range(7))
    assert [t.name for t in trials] == [
        *("reference", "uniform_low_rank", "block_diagonal"),
        *("candidate 3", "candidate 4", "candidate 5", "measurement"),
    ]


def test_repeats_come_after_all_candidates_and_the_measurement_is_last() -> None:
    trials = planned_trials(plan(trials=1, repeats=3))
    assert [t.name for t in trials[3:]] == [
        "candidate 3",
        *("uniform_low_rank (repeat 1)", "block_diagonal (repeat 1)", "winner (repeat 1)"),
        *("uniform_low_rank (repeat 2)", "block_diagonal (repeat 2)", "winner (repeat 2)"),
        "measurement",
    ]


def test_a_matrix_has_no_width_to_shrink() -> None:
    families = [t.family for t in planned_trials(matrix_spec())]
    assert "dense_shrunk" not in families
    assert "dense_shrunk" in [t.family for t in planned_trials(tiny())]


def test_no_candidates_are_repeated_where_there_are_none() -> None:
    spec = plan(trials=0, repeats=2)
    assert {t.kind for t in planned_trials(spec)} == {"reference", "baseline", "measurement"}
    assert planned_trials(spec)[first_candidate(spec)].kind == "measurement"


def test_the_first_candidate_follows_the_baselines() -> None:
    assert first_candidate(plan()) == 3


def test_the_reference_waits_for_nothing_and_baselines_only_for_it() -> None:
    spec = plan(repeats=2)
    assert waits_for(spec, 0) == []
    baselines = [t.number for t in planned_trials(spec) if t.kind == "baseline"]
    assert all(waits_for(spec, number) == [0] for number in baselines)


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [(1, [[0], [0, 3], [0, 3, 4], [0, 3, 4, 5]]), (3, [[0], [0], [0], [0, 3]])],
)
def test_a_candidate_waits_for_those_as_many_before_it_as_may_run_at_once(
    parallel: int, expected: list[list[int]]
) -> None:
    spec = plan(trials=4, parallel=parallel)
    assert [waits_for(spec, number) for number in (3, 4, 5, 6)] == expected


def test_a_repeat_waits_for_every_candidate_because_any_may_be_the_best() -> None:
    spec = plan(trials=3, repeats=2, parallel=3)
    repeat = next(t for t in planned_trials(spec) if t.name == "winner (repeat 1)")
    assert waits_for(spec, repeat.number) == [0, 3, 4, 5]


def test_the_measurement_waits_for_everything() -> None:
    spec = plan(repeats=2)
    last = planned_trials(spec)[-1]
    assert waits_for(spec, last.number) == list(range(last.number))


def test_a_trial_may_start_exactly_when_what_it_waits_for_has_ended() -> None:
    for spec in (plan(), plan(parallel=2), plan(repeats=2), several(), several(parallel=2)):
        trials = planned_trials(spec)
        for done in range(len(trials)):
            ended = set(range(done))
            expected = [
                trial
                for trial in trials[done:]
                if all(other.number in ended for other in prerequisites(trial, trials, spec))
            ]
            assert list(startable(trials, ended, spec)) == expected


def test_a_trial_knows_its_name() -> None:
    assert PlannedTrial(1, "baseline", "block_diagonal", 2).name == "block_diagonal (repeat 2)"


def several(**compute: int) -> SearchSpec:
    return tiny(
        budget={"ratios": [0.5, 0.07]},
        compute={"trials": 2} | compute,
        space={"baselines": ["block_diagonal"]},
        repeats=2,
    )


def test_each_budget_has_its_own_baselines_candidates_and_repeats() -> None:
    assert [(t.name, t.budget_index) for t in planned_trials(several())] == [
        ("reference", 0),
        ("block_diagonal at 50 %", 0),
        ("block_diagonal at 7 %", 1),
        ("candidate 3 at 50 %", 0),
        ("candidate 4 at 50 %", 0),
        ("candidate 5 at 7 %", 1),
        ("candidate 6 at 7 %", 1),
        ("block_diagonal at 50 % (repeat 1)", 0),
        ("winner at 50 % (repeat 1)", 0),
        ("block_diagonal at 7 % (repeat 1)", 1),
        ("winner at 7 % (repeat 1)", 1),
        ("measurement", 0),
    ]
    assert [first_candidate(several(), index) for index in (0, 1)] == [3, 5]


def test_candidates_wait_for_those_of_their_own_budget_alone() -> None:
    spec = several()
    assert [waits_for(spec, number) for number in (3, 4, 5, 6)] == [[0], [0, 3], [0], [0, 5]]
    assert waits_for(spec, 8) == [0, 3, 4]
    assert waits_for(spec, 10) == [0, 5, 6]
