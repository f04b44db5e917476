"""Workers, reapers and clients meet at the same rows: nobody is refused, nothing counts twice."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random

from search.plan import ENDED
from service import jobs
from service.db.session import Database
from service.errors import WrongState
from tests.integration.story import LEASE, REFERENCE, Story

HANDS = 4
STEPS = 100 if os.environ.get("FULL_PROOF") else 8
NEVER = 10_000  # so many attempts are lost


class Hand:
    """One of many that do at random what workers, reapers and clients do."""

    def __init__(self, stories: list[Story], number: int) -> None:
        self.stories = stories
        self.chance = Random(number)
        self.owner = f"worker {number}"

    def work(self) -> None:
        for _ in range(STEPS):
            story = self.chance.choice(self.stories)
            self.chance.choice([self.attempt, self.attempt, self.recover, self.change])(story)
            story.hints()

    def attempt(self, story: Story) -> None:
        waiting = [number for number, state in enumerate(story.states) if state == "WAITING"]
        claim = story.claim(self.chance.choice(waiting), self.owner) if waiting else None
        if claim is None:
            return
        story.record(claim, ("validation_loss", 1, 0.5))
        match self.chance.choice(["dies", "is gone", "ends", "ends"]):
            case "dies":
                story.release(claim, limit=NEVER)
            case "ends":
                story.finish(claim, metrics={"validation_loss": 0.5})

    def recover(self, story: Story) -> None:
        gone = set(self.chance.sample([f"worker {number}" for number in range(HANDS)], 2))
        story.write(
            lambda session: jobs.recover(session, now=story.now, max_attempts=NEVER, gone=gone)
        )

    def change(self, story: Story) -> None:
        for how in ("pause", "resume"):
            with suppress(WrongState):
                story.tell(how)


def test_all_get_their_turn(database: Database) -> None:
    stories = [Story(database) for _ in range(3)]
    with ThreadPoolExecutor(HANDS) as pool:
        for done in [pool.submit(Hand(stories, number).work) for number in range(HANDS)]:
            done.result()
    told = [(story.id, event) for story in stories for event in story.events]
    ends = Counter(
        (search_id, event.trial_number)
        for search_id, event in told
        if event.trial_number is not None and event.state in ENDED
    )
    assert set(ends.values()) <= {1}
    lost = sum(event.state == "LOST" for _, event in told)
    with database.read() as session:
        counters = jobs.census(session, now=stories[0].now, fresh=LEASE).counters
    assert counters.get("retries", 0) == lost


def test_who_has_counted_something_may_wait_for_a_search(database: Database) -> None:
    first, second = Story(database), Story(database)
    claims = [story.begin(REFERENCE) for story in (first, second)]
    with ThreadPoolExecutor(1) as pool, database.write() as session:

        def lose(claim: jobs.Claim) -> None:
            jobs.release(
                session,
                claim.trial_id,
                attempt=claim.attempt,
                reason="worker_lost",
                sentence="",
                now=first.now,
                max_attempts=NEVER,
            )

        lose(claims[0])
        other = pool.submit(second.release, claims[1])
        # On PostgreSQL the other has its turn first, on SQLite it waits for this transaction.
        with suppress(TimeoutError):
            other.result(0.3)
        jobs.cancel(session, second.id, second.asked())
        session.commit()
        assert other.result()
    with database.read() as session:
        counters = jobs.census(session, now=first.now, fresh=LEASE).counters
    assert counters == {
        "lost_processes": 2,
        "retries": 1 + (second.told_of(0).count("WAITING") > 1),
    }
