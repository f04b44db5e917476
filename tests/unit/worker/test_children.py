"""A worker speaks for its children: what it claims, and what it says of those that die."""

import signal
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from time import sleep
from typing import BinaryIO, final

import pytest

from service import jobs
from service.settings import Settings
from tests.integration.story import FIRST, LEASE, REFERENCE, Story
from worker import children as children_module
from worker.children import Children
from worker.launching import Anew, Launcher, Order, TrialProcess


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


@final
class Deaf(TrialProcess):
    """A trial that does not stop by itself, and the launcher that has it: who launches, asks."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self.sent: list[signal.Signals] = []
        self.waited = 0.0

    @property
    def begun(self) -> bool:
        return True

    def wait(self, seconds: float) -> int | None:
        self._ask()
        if signal.SIGKILL in self.sent:
            return -signal.SIGKILL
        self.waited += seconds
        assert self.waited < 30, "nobody ends it"
        sleep(seconds)
        return None

    def send(self, number: signal.Signals) -> None:
        self.sent.append(number)


@final
class Given(Launcher):
    """Launches what it was given."""

    def __init__(self, process: TrialProcess) -> None:
        self._process = process

    def prepare(self) -> None:
        pass

    def launch(self, order: Order, output: BinaryIO) -> TrialProcess:
        return self._process

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("how", "asked", "states"),
    [
        ("cancel", [signal.SIGTERM, signal.SIGKILL], ("CANCELLED", "CANCELLED")),
        ("pause", [signal.SIGTERM, signal.SIGKILL], ("PAUSED", "WAITING")),
        ("kill", [signal.SIGKILL], ("CANCELLED", "CANCELLED")),
    ],
)
def test_a_trial_that_does_not_stop_is_ended_within_two_seconds_and_is_not_lost(
    settings: Settings,
    story: Story,
    how: str,
    asked: list[signal.Signals],
    states: tuple[str, str],
) -> None:
    process = Deaf(cache(lambda: story.tell(how)))
    Children(settings, story.database, Given(process)).run(f"{story.id}-{REFERENCE}")
    assert process.waited < 2  # the machine may be busy
    assert process.sent == asked
    assert (story.search.state, story.trial(REFERENCE).state) == states
    assert story.told_of(REFERENCE) == ["WAITING", "RUNNING", states[1]]
    assert story.trial(REFERENCE).losses == 0


def test_a_process_that_hangs_when_its_attempt_is_replaced_keeps_no_slot(
    settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children_module, "OVER_SECONDS", 0.3)

    def replace() -> None:
        with story.database.read() as session:
            claim = jobs.claimed(session, f"{story.id}-{REFERENCE}", attempt=1)
        assert claim is not None
        story.release(claim)
        story.begin(REFERENCE, owner="another")

    process = Deaf(cache(replace))
    Children(settings, story.database, Given(process)).run(f"{story.id}-{REFERENCE}")
    assert process.sent == [signal.SIGKILL]
    assert process.waited >= 0.3, "it may have had something to finish"
    assert story.told_of(REFERENCE) == ["WAITING", "RUNNING", "LOST", "WAITING", "RUNNING"]


def test_a_process_that_never_keeps_its_claim_is_ended_and_lost(
    settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children_module, "START_SECONDS", 0.5)
    quick = settings.model_copy(update={"lease_seconds": 1.0})
    process = Deaf(lambda: None)
    Children(quick, story.database, Given(process)).run(f"{story.id}-{REFERENCE}")
    assert process.sent == [signal.SIGKILL]
    assert story.told_of(REFERENCE) == ["WAITING", "RUNNING", "LOST", "WAITING"]
    assert story.trial(REFERENCE).sentence == "its process ended with -9"


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
