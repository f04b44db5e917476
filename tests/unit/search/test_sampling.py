"""What Optuna proposes, from what earlier candidates told."""

from typing import Any

import pytest

from search.grid import grid_settings, grid_size, grid_values
from search.plan import PlannedTrial, planned_trials
from search.sampling import propose
from search.spec import LearnerSettings, Range, SearchSpec
from search.trial import FinishedTrial
from tests.unit.search.builders import finished, tiny

OTHERS: dict[str, Any] = {"space": {"baselines": []}}  # candidates are numbered from 1


def searched(**changes: object) -> SearchSpec:
    return tiny(**{"compute": {"trials": 12}} | OTHERS | changes)


def candidate(number: int, repeat: int = 0) -> PlannedTrial:
    return PlannedTrial(number, "candidate", None, repeat)


def test_the_first_candidate_gets_the_given_settings() -> None:
    given = LearnerSettings(group=3, shrink=0.7)
    spec = searched(space={"baselines": [], "learner": given})
    expected = given.model_copy(update={"structures": "rectangles"})  # which a network's are
    assert propose(spec, candidate(1), []) == expected


def test_the_same_history_gives_the_same_proposal() -> None:
    history = [finished(number, loss=1 / number) for number in range(1, 6)]
    one, two = (propose(searched(), candidate(6), history) for _ in range(2))
    assert one == two
    assert one != propose(searched(), candidate(7), history)
    assert one != propose(searched(seed=1), candidate(6), history)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_proposals_lie_within_the_space_and_keep_what_is_not_drawn(sampler: str) -> None:
    space = {
        "baselines": [],
        "groups": [2, 4],
        "starts": ["uniform"],
        "sigma_start": {"low": 0.1, "high": 0.1},
        "shrink": {"low": 0, "high": 0.2},
        "start_excess": {"low": 1, "high": 1.2},
        "learner": {"schedule": 0.3, "pieces": "ranks"},
    }
    spec = searched(space=space, sampler={"name": sampler})
    history: list[FinishedTrial] = []
    seen = set()
    for number in range(1, 13):
        found = propose(spec, candidate(number), history)
        assert found is not None
        if number > 1:
            assert found.group in (2, 4)
            assert found.start == "uniform"
            assert found.sigma_start == 0.1
            assert 0 <= found.shrink <= 0.2
            assert 0.5 <= found.sigma_end <= 2
            assert 0.1 <= found.structural_rate <= 10
            assert 1 <= found.start_excess <= 1.2
        assert (found.schedule, found.pieces) == (0.3, "ranks")
        seen.add(found)
        history.append(finished(number, loss=found.shrink, settings=found))
    assert len(seen) == 12


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_sampler_learns_where_losses_are_low(sampler: str) -> None:
    space = {"baselines": [], "starts": ["uniform", "output"]}
    spec = searched(space=space, sampler={"name": sampler})
    history = [
        finished(
            number,
            loss=0.1 if number % 2 else 1.0,
            settings=LearnerSettings(start="uniform" if number % 2 else "output"),
        )
        for number in range(1, 21)
    ]
    starts = [propose(spec, candidate(number), history) for number in range(21, 31)]
    assert sum(found is not None and found.start == "uniform" for found in starts) >= 7


def test_a_genetic_sampler_crosses_the_best_of_earlier_generations() -> None:
    space = {"baselines": [], "groups": [2, 4, 8, 16, 32, 64], "learner": {"group": 2}}
    spec = searched(space=space, sampler={"name": "nsga2"})
    history = [
        finished(number, loss=float(group), settings=LearnerSettings(group=group))
        for number, group in enumerate([2, 2, 2, 2, 64, 64, 32, 16, 2, 4, 2, 8], start=1)
    ]
    groups = [propose(spec, candidate(number), history) for number in range(13, 33)]
    assert sum(found is not None and found.group <= 4 for found in groups) >= 14


def test_a_grid_tries_the_given_settings_and_then_each_point_once() -> None:
    spec = on_grid(groups=[1, 2, 4], trials=20)
    found = [propose(spec, candidate(number), []) for number in range(1, 8)]
    assert found[0] == spec.space.learner.model_copy(update={"structures": "rectangles"})
    points = {(one.group, one.shrink) for one in found[1:] if one}
    assert points == {(g, s) for g in (1, 2, 4) for s in (0.01, 0.5)}


def test_a_search_has_no_more_candidates_than_its_grid_has_points() -> None:
    kinds = [trial.kind for trial in planned_trials(on_grid(groups=[1, 2, 4], trials=20))]
    assert kinds.count("candidate") == 3 * 2 + 1
    assert [t.kind for t in planned_trials(on_grid(groups=[1], trials=2))].count("candidate") == 2


def test_the_given_settings_are_not_tried_twice_where_they_lie_on_the_grid() -> None:
    spec = on_grid(groups=[1, 2], trials=20, learner={"shrink": 0.5, "sigma_start": 0.1})
    assert grid_size(spec) == len(grid_settings(spec)) == 4


@pytest.mark.parametrize("values", [1, 2, 3, 5])
def test_a_grid_reaches_from_end_to_end_by_ratio_where_nothing_is_zero(values: int) -> None:
    spread = grid_values(Range(low=0.01, high=100), values)
    assert len(spread) == values
    assert spread[len(spread) // 2] == pytest.approx(1) or values == 2
    if values > 1:
        assert (spread[0], spread[-1]) == (0.01, 100)
    assert grid_values(Range(low=0, high=1), 3) == (0, 0.5, 1)
    assert grid_values(Range(low=3, high=3), values) == (3,)


def on_grid(*, groups: list[int], trials: int, learner: dict[str, Any] | None = None) -> SearchSpec:
    """A grid over the groups and the two ends of shrink."""
    fixed = {"low": 0.1, "high": 0.1}
    names = ("sigma_start", "sigma_end", "structural_rate")
    ones = {"low": 1.2, "high": 1.2}
    kept = {"sigma_end": 0.1, "structural_rate": 0.1, "start_excess": 1.2}
    space = {
        "baselines": [],
        "groups": groups,
        "start_excess": ones,
        "learner": kept | (learner or {}),
    }
    return searched(
        space=space | dict.fromkeys(names, fixed),
        sampler={"name": "grid"},
        compute={"trials": trials},
    )


def test_candidates_that_run_at_the_same_time_are_not_known() -> None:
    spec = searched(compute={"trials": 12, "parallel": 3})
    history = [finished(number, loss=1 / number) for number in range(1, 6)]
    late = [*history, finished(6, loss=0.0), finished(7, loss=0.0)]
    assert propose(spec, candidate(8), history) == propose(spec, candidate(8), late)


def test_a_repeat_gets_the_best_settings() -> None:
    history = [
        finished(1, loss=0.5),
        finished(2, loss=0.2, settings=LearnerSettings(group=2)),
        finished(3, loss=0.1, settings=LearnerSettings(group=3), state="PRUNED"),
        finished(4, loss=0.2, settings=LearnerSettings(group=4)),
        finished(5, loss=None, state="FAILED"),
    ]
    assert propose(searched(), candidate(20, repeat=1), history) == LearnerSettings(group=2)


def test_nothing_can_be_repeated_where_nothing_was_completed() -> None:
    history = [finished(1, state="FAILED", loss=None), finished(2, state="PRUNED", loss=0.1)]
    assert propose(searched(), candidate(9, repeat=1), history) is None


def test_failed_cancelled_and_lost_candidates_do_not_mislead_the_sampler() -> None:
    history = [
        finished(1, loss=0.3),
        finished(2, loss=None, state="FAILED"),
        finished(3, loss=None, state="CANCELLED"),
        finished(4, loss=None, state="PRUNED", curve=((10, 2.0),)),
    ]
    assert propose(searched(), candidate(5), history) is not None


def test_under_a_budget_in_time_the_menu_comes_first_and_then_ranks_are_learned() -> None:
    spec = tiny(budget={"quantity": "latency", "ratio": 0.5}, compute={"trials": 6})
    history: list[FinishedTrial] = []
    for planned in (one for one in planned_trials(spec) if one.kind == "candidate"):
        settings = propose(spec, planned, history)
        assert settings is not None
        assert (settings.pieces, settings.gaudi) == ("ranks", False)
        assert settings.structures == ("rectangles" if history else "menu")
        # What has no effect keeps the space's own value.
        own = spec.space.learner
        assert (settings.sigma_start, settings.shrink) == (own.sigma_start, own.shrink)
        loss = 1.0 / planned.number
        history.append(FinishedTrial(planned, "COMPLETE", settings, loss, (), None))
    assert len({one.settings.start_excess for one in history if one.settings}) > 3
