"""Which hyper-parameters mattered, on losses of which it is known."""

import pytest

from search.importance import importances
from search.spec import LearnerSettings
from search.trial import FinishedTrial
from tests.unit.search.builders import finished
from tests.unit.search.test_sampling import searched


def candidates(count: int) -> list[FinishedTrial]:
    """Their loss is their shrink; their sigma is anything."""
    return [
        finished(
            number,
            loss=0.01 + number / 50,
            settings=LearnerSettings(shrink=0.01 + number / 50, sigma_start=0.02 + number % 7 / 30),
        )
        for number in range(1, count + 1)
    ]


def test_what_makes_the_loss_matters_most() -> None:
    found = importances(searched(), candidates(20), budget_index=1)
    assert found[0].name == "shrink"
    assert found[0].fanova > 0.9
    assert max(found, key=lambda one: one.ped_anova).name == "shrink"
    assert {one.budget_index for one in found} == {1}
    for shares in ([one.fanova for one in found], [one.ped_anova for one in found]):
        assert sum(shares) == pytest.approx(1)


def test_the_same_candidates_give_the_same_answer() -> None:
    one, two = (importances(searched(), candidates(9), budget_index=0) for _ in range(2))
    assert one == two


def test_few_candidates_or_nothing_drawn_say_nothing() -> None:
    assert importances(searched(), candidates(3), budget_index=0) == ()
    others = [finished(n, state="PRUNED", loss=None) for n in range(1, 9)]
    assert importances(searched(), others, budget_index=0) == ()
    fixed = {"low": 1.0, "high": 1.0}
    names = ("start_excess", "sigma_start", "sigma_end", "shrink", "structural_rate")
    spec = searched(space={"baselines": [], "groups": [1], **dict.fromkeys(names, fixed)})
    assert importances(spec, candidates(9), budget_index=0) == ()
