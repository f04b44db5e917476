"""A worker speaks for its children: what it claims, and what it says of those that die."""

from datetime import datetime
from pathlib import Path

import pytest

from service import jobs
from service.settings import Settings
from tests.integration.story import FIRST, LEASE, REFERENCE, Story
from worker.children import Children
from worker.launching import Anew


@pytest.fixture
def children(settings: Settings, story: Story) -> Children:
    return Children(settings, story.database, Anew({}))


def hints(settings: Settings) -> list[Path]:
    return list((settings.home / "broker/messages").glob("*.msg"))


def test_a_child_that_dies_is_put_back_and_hinted_at_without_waiting_for_the_lease(
    settings: Settings, story: Story, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATNAS_LOG_LEVEL", "a level that no child understands")
    children.run(f"{story.id}-{REFERENCE}")
    assert story.told_of(REFERENCE) == ["WAITING", "RUNNING", "LOST", "WAITING"]
    assert story.trial(REFERENCE).sentence == "its process ended with 1"
    assert len(hints(settings)) == 1


def test_a_hint_at_a_trial_that_is_taken_does_nothing(
    settings: Settings, story: Story, children: Children
) -> None:
    story.begin(REFERENCE)
    before = story.events
    children.run(f"{story.id}-{REFERENCE}")
    children.run(f"{story.id}-{FIRST}")
    children.run("srch_0-0")
    assert story.events == before
    assert not hints(settings)


def test_a_worker_that_stops_claims_nothing_more(story: Story, children: Children) -> None:
    children.stop()
    children.run(f"{story.id}-{REFERENCE}")
    assert story.trial(REFERENCE).state == "WAITING"


def test_a_claim_is_kept_for_a_child_that_is_slow_to_start(story: Story) -> None:
    claim = story.begin(REFERENCE)

    def hold(until: datetime) -> datetime | None:
        return story.write(
            lambda session: jobs.hold(session, claim, until=until, now=story.now, lease=LEASE)
        )

    until = claim.lease_until
    for _ in range(3):
        story.later(40)
        held = hold(until)
        assert held is not None
        until = held
        story.recover()
    assert story.trial(REFERENCE).state == "RUNNING"
    story.later(1)
    story.renew(claim)
    assert hold(until) is None, "the child keeps it by itself"
    story.release(claim)
    assert hold(until) is None
