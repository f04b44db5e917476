"""What Optuna proposes and prunes, from what earlier candidates told."""

from typing import Any

import pytest

from search.plan import PlannedTrial
from search.sampling import propose, should_prune
from search.spec import LearnerSettings, SearchSpec
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


@pytest.mark.parametrize("sampler", ["tpe", "random"])
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


def test_the_sampler_learns_where_losses_are_low() -> None:
    spec = searched(space={"baselines": [], "starts": ["uniform", "output"]})
    history = [
        finished(
            number,
            loss=0.1 if number % 2 else 1.0,
            settings=LearnerSettings(start="uniform" if number % 2 else "output"),
        )
        for number in range(1, 21)
    ]
    starts = [propose(spec, candidate(number), history) for number in range(21, 41)]
    assert sum(found is not None and found.start == "uniform" for found in starts) >= 14


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


GOOD = [
    finished(number, loss=0.2 + number / 100, curve=((10, 1.0), (20, 0.5), (30, 0.2)))
    for number in range(1, 6)
]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], False),
        ([(10, 0.9)], False),
        ([(10, 0.9), (20, 0.4)], False),
        ([(10, 1.4)], True),
        ([(10, 1.4), (20, 1.3)], True),
        ([(15, 9.0)], False),  # nobody else was seen at this step
    ],
)
def test_only_what_is_worse_than_the_median_at_its_step_is_pruned(
    curve: list[tuple[int, float]], expected: bool
) -> None:
    assert should_prune(searched(), candidate(6), GOOD, curve) is expected


def test_nothing_is_pruned_before_three_candidates_are_known() -> None:
    assert not should_prune(searched(), candidate(3), GOOD[:2], [(10, 99.0)])
    assert should_prune(searched(), candidate(4), GOOD[:3], [(10, 99.0)])


def test_a_repeat_is_never_pruned() -> None:
    assert not should_prune(searched(), candidate(9, repeat=1), GOOD, [(10, 99.0)])


def test_pruning_can_be_switched_off() -> None:
    spec = searched(sampler={"pruner": "none"})
    assert not should_prune(spec, candidate(6), GOOD, [(10, 99.0)])
