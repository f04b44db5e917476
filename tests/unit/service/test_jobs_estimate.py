"""How long a search will take, from what its trials took."""

import pytest

from service.db.session import Database
from tests.integration.story import BASELINES, FIRST, LEASE, MEASUREMENT, REFERENCE, SECOND, Story


@pytest.fixture
def story(sqlite_url: str) -> Story:
    return Story(Database(sqlite_url), compute={"trials": 2, "epochs": 10, "reference_epochs": 20})


def spend(story: Story, seconds: float, *numbers: int) -> None:
    for number in numbers:
        claim = story.begin(number)
        story.later(seconds)
        story.finish(claim)


def test_nothing_is_foreseen_before_anything_has_run(story: Story) -> None:
    assert story.search.progress.eta_seconds is None


def test_epochs_are_compared_after_the_reference(story: Story) -> None:
    spend(story, 20, REFERENCE)
    assert story.search.progress.eta_seconds == 7 * 10


def test_trials_are_compared_with_their_kind(story: Story) -> None:
    spend(story, 20, REFERENCE)
    spend(story, 5, *BASELINES)
    spend(story, 30, FIRST)
    running = story.begin(SECOND)
    story.later(10)
    eta = story.search.progress.eta_seconds
    assert eta is not None
    assert 20 <= eta <= 50
    story.finish(running)
    spend(story, 1, MEASUREMENT)
    assert story.search.progress.eta_seconds == 0


def test_what_a_trial_waited_between_two_attempts_is_no_time_that_it_took(story: Story) -> None:
    claim = story.begin(REFERENCE)
    story.later(5)
    story.release(claim)
    story.later(1000)
    claim = story.begin(REFERENCE)
    story.later(15)
    story.finish(claim)
    assert story.trial(REFERENCE).seconds == 20
    assert story.search.progress.eta_seconds == 7 * 10


def test_one_that_was_lost_ran_no_longer_than_its_lease(story: Story) -> None:
    story.begin(REFERENCE)
    story.later(1000)
    story.recover()
    assert story.trial(REFERENCE).seconds == LEASE.total_seconds()


def test_what_runs_is_named(story: Story) -> None:
    claim = story.begin(REFERENCE)
    assert story.search.progress.phase == "reference: starting"
    story.record(claim)
    assert story.search.progress.phase == "reference: training, step 1 of 2"
