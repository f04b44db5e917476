"""What an earlier search's candidates tell a later one."""

from typing import Any

import pytest

from search.plan import PlannedTrial
from search.pruning import should_prune
from search.resolved import resolve
from search.sampling import propose
from search.spec import LearnerSettings, SearchSpec
from search.trial import FinishedTrial
from search.warm import EarlierCandidate, as_told, count_inside, inherited
from tests.unit.search.builders import finished, tiny
from tests.unit.search.test_sampling import candidate, searched


def given(
    spec: SearchSpec, earlier: SearchSpec, past: list[FinishedTrial]
) -> tuple[EarlierCandidate, ...]:
    return inherited(spec, resolve(spec), earlier, resolve(earlier), past)


def told(number: int, loss: float, budget_index: int = 0) -> FinishedTrial:
    planned = PlannedTrial(number, "candidate", budget_index=budget_index)
    metrics = {"network_parameters": 10.0}
    return FinishedTrial(planned, "COMPLETE", LearnerSettings(), loss, (), None, metrics)


def test_complete_candidates_alone_are_inherited_the_best_first() -> None:
    past = [
        finished(1, loss=0.5),
        finished(2, loss=0.2),
        finished(3, state="PRUNED", loss=None),
        finished(4, state="FAILED", loss=None),
        finished(5, loss=0.1, repeat=1),
    ]
    found = given(searched(), searched(), past)
    assert [one.validation_loss for one in found] == [0.2, 0.5]


def test_each_budget_inherits_from_the_nearest_earlier_one() -> None:
    earlier = searched(budget={"ratios": [0.6, 0.3]})
    later = searched(budget={"ratios": [0.25, 0.3, 0.9]})
    found = given(later, earlier, [told(1, 0.1, 0), told(2, 0.2, 1)])
    assert [(one.budget_index, one.validation_loss, one.comparable) for one in found] == [
        (0, 0.2, False),
        (1, 0.2, True),
        (2, 0.1, False),
    ]
    assert [bool(one.metrics) for one in found] == [False, True, False]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"budget": {"ratio": 0.3}},
        {"budget": {"ratio": 0.4, "quantity": "parameters"}},
        {"training": {"batch": 7}},
        {"layers": {"include": ["layers.0"]}},
        {"compute": {"trials": 12, "epochs": 5}},
    ],
)
def test_losses_compare_only_where_everything_but_the_sampler_is_the_same(
    changes: dict[str, Any],
) -> None:
    past = [finished(1)]
    assert given(searched(), searched(sampler={"name": "random"}), past)[0].comparable
    assert not given(searched(**changes), searched(), past)[0].comparable


def test_losses_that_do_not_compare_are_moved_to_the_median_of_the_known() -> None:
    past = [finished(number, loss=float(number)) for number in (1, 2, 3)]
    other = given(searched(budget={"ratio": 0.3}), searched(), past)
    assert [t.validation_loss for t in as_told(other, 0, [])] == [1, 2, 3]
    known = [finished(7, loss=11.0), finished(8, loss=13.0)]
    moved = as_told(other, 0, known)
    assert [t.validation_loss for t in moved] == [11, 12, 13]
    assert all(t.planned.number < 0 for t in moved)
    same = given(searched(), searched(), past)
    assert [t.validation_loss for t in as_told(same, 0, known)] == [1, 2, 3]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_the_sampler_learns_from_them_from_its_second_candidate_on(sampler: str) -> None:
    space = {"baselines": [], "starts": ["uniform", "output"]}
    spec = searched(space=space, sampler={"name": sampler}, budget={"ratio": 0.3})
    past = [
        finished(
            number,
            loss=(0.1 if number % 2 else 1.0) + number / 1000,
            settings=LearnerSettings(
                start="uniform" if number % 2 else "output", shrink=0.01 + number / 60
            ),
        )
        for number in range(1, 25)
    ]
    earlier = given(spec, searched(space=space), past)
    first = [finished(1, loss=5.0)]
    found = [propose(spec, candidate(number), first, earlier) for number in range(2, 12)]
    assert sum(one is not None and one.start == "uniform" for one in found) >= 7
    assert found == [propose(spec, candidate(number), first, earlier) for number in range(2, 12)]


def test_what_lies_outside_of_the_new_space_is_not_told() -> None:
    spec = searched(space={"baselines": [], "groups": [8]})
    inside = finished(2, settings=LearnerSettings(group=8))
    earlier = given(spec, searched(), [finished(1), inside])
    assert (len(earlier), count_inside(earlier, spec)) == (2, 1)
    assert propose(spec, candidate(2), [], earlier) == propose(
        spec, candidate(2), [], given(spec, searched(), [inside])
    )


def test_nothing_is_pruned_beside_an_earlier_search() -> None:
    spec = tiny(compute={"trials": 8}, space={"baselines": []})
    assert not should_prune(spec, candidate(2), [finished(1, loss=0.1)], [(10, 99.0)])
