"""What holds for every sampler and pruner: a candidate is made from a known past alone."""

from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.plan import PlannedTrial, TrialState, planned_trials
from search.pruning import should_prune
from search.sampler import PrunerName, SamplerName
from search.sampling import propose
from search.spec import LearnerSettings, SearchSpec
from search.study import known_candidates
from search.trial import FinishedTrial
from tests.unit.search.builders import finished, tiny

SAMPLERS: list[SamplerName] = list(get_args(SamplerName))
PRUNERS: list[PrunerName] = list(get_args(PrunerName))
TOLD: list[TrialState] = ["COMPLETE", "PRUNED", "FAILED", "CANCELLED"]


def spec_of(**changes: Any) -> SearchSpec:
    compute = {"trials": 12, "parallel": 2}
    return tiny(**{"compute": compute, "space": {"baselines": []}} | changes)


@st.composite
def pasts(draw: st.DrawFn) -> list[FinishedTrial]:
    """Candidates 1 to 8 as they may have ended, inside the space or not."""
    past = []
    for number in range(1, 9):
        state = draw(st.sampled_from(TOLD))
        level = draw(st.floats(0.1, 10))
        made = LearnerSettings(
            group=draw(st.sampled_from([1, 2, 4, 8])),
            shrink=draw(st.floats(0.01, 0.6)),
            sigma_end=draw(st.floats(0.5, 2)),
        )
        curve = tuple((step, level * (1 + 1 / step)) for step in (10, 20, 30, 40))
        past.append(
            finished(
                number,
                state=state,
                loss=level if state == "COMPLETE" else None,
                settings=made,
                curve=curve if state == "COMPLETE" else curve[: draw(st.integers(0, 3))],
            )
        )
    return past


law = settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("sampler", SAMPLERS)
@law
@given(pasts(), st.randoms(use_true_random=False))
def test_a_proposal_does_not_depend_on_who_ended_first_nor_on_who_came_later(
    sampler: str, past: list[FinishedTrial], chance: Any
) -> None:
    spec = spec_of(sampler={"name": sampler})
    planned = planned_trials(spec)[8]
    expected = propose(spec, planned, known_candidates(spec, planned, past))
    assert expected is not None
    shuffled = chance.sample(past, len(past))
    assert propose(spec, planned, shuffled) == expected


@pytest.mark.parametrize("pruner", PRUNERS)
@law
@given(pasts(), st.randoms(use_true_random=False), st.floats(0.1, 10))
def test_pruning_does_not_depend_on_who_ended_first_nor_on_who_came_later(
    pruner: str, past: list[FinishedTrial], chance: Any, level: float
) -> None:
    spec = spec_of(sampler={"pruner": pruner})
    planned = PlannedTrial(8, "candidate")
    curve = [(10, level), (20, level), (30, level)]
    known = known_candidates(spec, planned, past)
    for length in (1, 2, 3):
        expected = should_prune(spec, planned, known, curve[:length])
        shuffled = chance.sample(past, len(past))
        assert should_prune(spec, planned, shuffled, curve[:length]) is expected


@pytest.mark.parametrize("sampler", SAMPLERS)
@law
@given(pasts())
def test_a_proposal_lies_in_the_space(sampler: str, past: list[FinishedTrial]) -> None:
    spec = spec_of(sampler={"name": sampler})
    found = propose(spec, planned_trials(spec)[9], past)
    assert found is not None
    for name, interval in spec.space.ranges.items():
        assert interval.low <= getattr(found, name) <= interval.high
    assert found.group in spec.space.groups
