"""Which candidates end early, by every pruner."""

from typing import get_args

import pytest

from search.pruning import should_prune
from search.sampler import PrunerName
from tests.unit.search.builders import finished
from tests.unit.search.test_sampling import candidate, searched

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


PRUNERS: list[PrunerName] = list(get_args(PrunerName))
STEPS = tuple(range(10, 110, 10))


def falling(number: int, level: float) -> tuple[tuple[int, float], ...]:
    """A curve that falls to its level."""
    return tuple((step, level * (1 + 1 / step)) for step in STEPS)


MANY = [
    finished(number, loss=1 + number / 10, curve=falling(number, 1 + number / 10))
    for number in range(1, 10)
]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_what_is_far_worse_all_along_is_pruned_by_every_pruner_but_none(pruner: str) -> None:
    spec = searched(sampler={"pruner": pruner}, compute={"trials": 20})
    worse = [(step, 9.0 + index) for index, step in enumerate(STEPS)]
    ends = [should_prune(spec, candidate(10), MANY, worse[:n]) for n in range(1, len(worse) + 1)]
    assert any(ends) == (pruner != "none")


@pytest.mark.parametrize("pruner", PRUNERS)
def test_the_best_so_far_is_never_pruned(pruner: str) -> None:
    spec = searched(sampler={"pruner": pruner}, compute={"trials": 20})
    best = falling(10, 0.5)
    assert not any(should_prune(spec, candidate(10), MANY, best[:n]) for n in range(1, 11))


@pytest.mark.parametrize("pruner", PRUNERS)
def test_two_known_candidates_prune_nothing(pruner: str) -> None:
    spec = searched(sampler={"pruner": pruner})
    assert not should_prune(spec, candidate(3), MANY[:2], [(step, 99.0) for step in STEPS])


def test_a_percentile_is_how_good_a_candidate_must_be() -> None:
    middling = falling(10, 1.45)[:3]
    for percentile, expected in ((20, True), (80, False)):
        spec = searched(sampler={"pruner": "percentile", "percentile": percentile})
        assert should_prune(spec, candidate(10), MANY, middling) is expected


def test_patience_waits_for_epochs_without_progress() -> None:
    spec = searched(sampler={"pruner": "patient", "patience": 3})
    flat = [(step, 9.0 if step == 10 else 9.5) for step in STEPS]
    ends = [should_prune(spec, candidate(10), MANY, flat[:n]) for n in range(1, 8)]
    assert ends == [False] * 4 + [True] * 3


def test_one_of_so_many_goes_on_at_each_rung() -> None:
    history = [
        finished(number, loss=float(number), curve=((10, float(number)), (20, float(number))))
        for number in range(1, 10)
    ]
    for reduction, expected in ((2, False), (5, True)):
        pruner = {"pruner": "successive_halving", "reduction": reduction}
        spec = searched(sampler=pruner, compute={"trials": 20})
        assert should_prune(spec, candidate(10), history, [(10, 3.5)]) is expected


def test_a_bracket_belongs_to_a_place_whichever_trials_failed_before_it() -> None:
    spec = searched(sampler={"pruner": "hyperband"}, compute={"trials": 60})
    curve = [(step, 9.0) for step in STEPS]
    some = [trial for trial in MANY if trial.planned.number != 2]
    failed = sorted([*some, finished(2, state="FAILED", loss=None)], key=lambda t: t.planned.number)
    ends = {
        tuple(should_prune(spec, candidate(k), told, curve[:n]) for n in range(1, 11))
        for told in (some, failed)
        for k in (10,)
    }
    assert len(ends) == 1
    first = [
        next((n for n in range(1, 11) if should_prune(spec, candidate(k), MANY, curve[:n])), None)
        for k in range(10, 40)
    ]
    assert len(set(first)) > 1  # not everyone is in the same bracket


def test_a_curve_with_holes_is_compared_where_both_were_seen() -> None:
    spec = searched(sampler={"pruner": "wilcoxon"})
    assert not should_prune(spec, candidate(10), MANY, [(15, 9.0)])
