"""The tables of states, alone and driven at random through every step that a job can take."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from search.plan import ENDED
from service import jobs
from service.db.migrations import upgrade
from service.db.session import Database
from service.errors import WrongState
from service.lifecycle import (
    LIVE_SEARCH_STATES,
    SEARCH_STATES,
    SEARCH_TRANSITIONS,
    TRIAL_STATES,
    TRIAL_TRANSITIONS,
)
from tests.integration.story import Story

numbers = st.integers(0, 7)


def test_every_state_says_what_may_follow() -> None:
    assert set(SEARCH_TRANSITIONS) == set(SEARCH_STATES)
    assert set(TRIAL_TRANSITIONS) == set(TRIAL_STATES)


def test_what_has_ended_stays_ended() -> None:
    assert {state for state, after in TRIAL_TRANSITIONS.items() if not after} == ENDED
    assert {state for state, after in SEARCH_TRANSITIONS.items() if after} == LIVE_SEARCH_STATES


def test_every_state_can_be_reached() -> None:
    assert {state for after in SEARCH_TRANSITIONS.values() for state in after} | {"QUEUED"} == set(
        SEARCH_STATES
    )
    assert {state for after in TRIAL_TRANSITIONS.values() for state in after} == set(TRIAL_STATES)


@cache
def migrated() -> bytes:
    """Return an SQLite file with the tables and no rows."""
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "matnas.db"
        upgrade(f"sqlite:///{file}")
        return file.read_bytes()


class Life(RuleBasedStateMachine):
    """One search under workers that come, die and answer late, a reaper and a client."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="matnas-life-"))
        file = self.home / "matnas.db"
        file.write_bytes(migrated())
        self.database = Database(f"sqlite:///{file}")
        self.story = Story(self.database, compute={"trials": 2, "parallel": 2, "seconds": 400})
        self.claims: list[jobs.Claim] = []

    def teardown(self) -> None:
        self.database.dispose()
        shutil.rmtree(self.home)

    @rule(number=numbers)
    def claim(self, number: int) -> None:
        claim = self.story.claim(number)
        self.claims += [] if claim is None else [claim]

    @rule(pick=numbers, state=st.sampled_from(["COMPLETE", "PRUNED", "FAILED", "CANCELLED"]))
    def finish(self, pick: int, state: str) -> None:
        # An attempt is cancelled only where it was asked to stop.
        if self.claims:
            claim = self.claims[pick % len(self.claims)]
            if state == "CANCELLED" and not self.story.record(claim).stop:
                return
            assert state in ENDED
            current = self.story.trial(claim.planned.number)
            mine = current.state == "RUNNING" and current.attempt == claim.attempt
            assert self.story.finish(claim, state) == mine

    @rule(pick=numbers, died=st.booleans())
    def release(self, pick: int, died: bool) -> None:
        if self.claims:
            claim = self.claims[pick % len(self.claims)]
            self.story.release(claim, "worker_lost" if died else "worker_stopped")

    @rule(pick=numbers)
    def renew(self, pick: int) -> None:
        if self.claims:
            self.story.renew(self.claims[pick % len(self.claims)])

    @rule(seconds=st.integers(1, 90))
    def wait(self, seconds: int) -> None:
        self.story.later(seconds)

    @rule()
    def recover(self) -> None:
        self.story.recover()

    @rule()
    def cancel(self) -> None:
        try:
            self.story.cancel()
        except WrongState:
            assert self.story.search.state in ("SUCCEEDED", "FAILED")

    @rule(how=st.sampled_from(["pause", "resume", "kill"]))
    def be_told(self, how: str) -> None:
        state = self.story.search.state
        try:
            self.story.tell(how)
        except WrongState:
            refused = {"SUCCEEDED", "FAILED"}
            if how != "kill":
                refused |= {"STOPPING", "CANCELLED"} | ({"PAUSING"} if how == "resume" else set())
            assert state in refused

    @invariant()
    def every_step_was_allowed_and_every_end_was_one(self) -> None:
        told = defaultdict[int | None, list[str]](list)
        for event in self.story.events:
            told[event.trial_number].append(event.state)
        assert _allowed(told.pop(None), SEARCH_TRANSITIONS)
        assert all(_allowed(states, TRIAL_TRANSITIONS) for states in told.values())
        assert [told[number][-1] for number in range(8)] == self.story.states

    @invariant()
    def an_ended_search_has_ended_trials_and_a_live_one_goes_on(self) -> None:
        states = set(self.story.states)
        if not self.story.search.live:
            assert states <= ENDED
        elif self.story.search.state == "PAUSED":
            assert "RUNNING" not in states
        else:
            # Something runs, or something may be claimed once time that is up has been noticed.
            assert "RUNNING" in states or self._claimable()

    def _claimable(self) -> bool:
        story = self.story
        story.recover()
        due = story.write(
            lambda session: jobs.hints_due(session, now=story.now, again_after=timedelta(0))
        )
        return bool(due) or not story.search.live


def _allowed(told: list[str], table: Mapping[Any, Collection[str]]) -> bool:
    return all(after in table[before] for before, after in pairwise(told))


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
