"""What is promised of jobs, kept by SQLite and by PostgreSQL alike."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Barrier
from typing import TypeVar

import pytest

from search.spec import LearnerSettings
from service import jobs
from service.db.session import Database
from service.errors import WrongState
from tests.integration.story import (
    BASELINES,
    FIRST,
    LEASE,
    MEASUREMENT,
    REFERENCE,
    SECOND,
    Story,
)

Result = TypeVar("Result")


@pytest.fixture
def story(database: Database) -> Story:
    return Story(database)


def at_once(work: Callable[[int], Result], *, times: int = 8) -> list[Result]:
    barrier = Barrier(times)

    def one(index: int) -> Result:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(one, range(times)))


class TestAClaim:
    def test_of_many_claimers_one_wins(self, story: Story) -> None:
        claims = at_once(lambda index: story.claim(REFERENCE, f"worker {index}"), times=12)
        (won,) = [claim for claim in claims if claim is not None]
        assert won.attempt == 1
        assert story.told_of(REFERENCE) == ["WAITING", "RUNNING"]

    def test_of_a_trial_that_may_not_start_is_refused(self, story: Story) -> None:
        assert story.claim(FIRST) is None
        assert story.claim(MEASUREMENT) is None
        assert story.states == ["WAITING"] * 8

    def test_of_an_unknown_trial_is_refused(self, story: Story) -> None:
        assert story.claim(99) is None

    def test_starts_the_search(self, story: Story) -> None:
        story.later(5)
        story.begin(REFERENCE)
        assert story.search.state == "RUNNING"
        assert story.search.started_at == story.now

    def test_carries_exactly_what_the_plan_admits(self, story: Story) -> None:
        story.run(REFERENCE, *BASELINES)
        first = story.begin(FIRST)
        story.record(first, ("validation_loss", 2, 0.5), ("validation_loss", 1, 0.7))
        story.finish(first, metrics={"validation_loss": 0.5})
        second = story.begin(SECOND)
        assert [past.planned.number for past in second.history] == [REFERENCE, FIRST]
        assert second.history[1].validation_loss == 0.5
        assert second.history[1].curve == ((1, 0.7), (2, 0.5))
        story.finish(second)
        assert len(story.begin(MEASUREMENT).history) == MEASUREMENT

    def test_can_be_read_again_by_the_process_that_runs_it(self, story: Story) -> None:
        claim = story.begin(REFERENCE)
        with story.database.read() as session:
            assert jobs.claimed(session, claim.trial_id, attempt=claim.attempt) == claim
            assert jobs.claimed(session, claim.trial_id, attempt=claim.attempt + 1) is None


class TestTheFence:
    def test_a_replaced_attempt_changes_nothing(self, story: Story) -> None:
        replaced = story.begin(REFERENCE)
        story.later(61)
        story.recover()
        owner = story.begin(REFERENCE, "two")
        before = story.trial(REFERENCE), story.events
        gone = jobs.Renewal(still_mine=False, stop=True)
        assert story.renew(replaced) == gone
        assert story.record(replaced, ("validation_loss", 1, 0.1)) == gone
        settings = LearnerSettings(group=2)
        assert story.write(lambda s: jobs.save_settings(s, replaced, settings)) == gone
        assert not story.finish(replaced)
        assert not story.release(replaced)
        assert (story.trial(REFERENCE), story.events) == before
        with story.database.read() as session:
            assert jobs.points(session, story.id, REFERENCE) == {}
        assert story.finish(owner)

    def test_nothing_is_counted_twice(self, story: Story) -> None:
        claim = story.begin(REFERENCE)
        assert sorted(at_once(lambda _: story.finish(claim))) == [False] * 7 + [True]
        assert story.told_of(REFERENCE).count("COMPLETE") == 1

    def test_an_end_and_a_loss_at_the_same_moment_are_one_of_them(self, story: Story) -> None:
        claim = story.begin(REFERENCE)
        won = at_once(
            lambda index: story.finish(claim) if index % 2 else story.release(claim), times=6
        )
        assert won.count(True) == 1

    def test_points_that_are_reported_again_are_replaced(self, story: Story) -> None:
        claim = story.begin(REFERENCE)
        story.record(claim, ("loss", 1, 3.0), ("loss", 2, 2.0), ("loss", 2, 1.0))
        story.record(claim, ("loss", 2, 1.5), ("loss", 3, float("nan")))
        with story.database.read() as session:
            curves = jobs.points(session, story.id, REFERENCE)
        assert curves == {"loss": ((1, 3.0), (2, 1.5), (3, None))}
        assert story.trial(REFERENCE).latest == {"loss": None}


class TestALostTrial:
    def test_waits_again_and_is_hinted_at_once(self, story: Story) -> None:
        assert story.hints() == [REFERENCE]
        story.begin(REFERENCE)
        story.later(61)
        story.recover()
        assert story.told_of(REFERENCE) == ["WAITING", "RUNNING", "LOST", "WAITING"]
        assert story.events[-1].reason == "worker_lost"
        assert story.events[-1].actor == "reaper"
        assert story.trial(REFERENCE).losses == 1
        assert story.hints() == [REFERENCE]
        assert story.begin(REFERENCE).attempt == 2

    def test_is_not_one_whose_lease_is_renewed(self, story: Story) -> None:
        claim = story.begin(REFERENCE)
        story.later(59)
        assert story.renew(claim) == jobs.Renewal(still_mine=True, stop=False)
        story.later(59)
        story.recover()
        assert story.trial(REFERENCE).state == "RUNNING"

    def test_is_put_back_at_once_by_its_supervisor(self, story: Story) -> None:
        claim = story.begin(REFERENCE)
        assert story.release(claim)
        assert story.told_of(REFERENCE)[-2:] == ["LOST", "WAITING"]

    def test_keeps_the_settings_it_was_given(self, story: Story) -> None:
        story.run(REFERENCE)
        claim, settings = story.begin(FIRST), LearnerSettings(group=4)
        story.write(lambda session: jobs.save_settings(session, claim, settings))
        story.release(claim)
        assert story.begin(FIRST).settings == settings

    def test_fails_after_the_limit(self, story: Story) -> None:
        story.run(REFERENCE)
        for _ in range(3):
            story.release(story.begin(FIRST))
        assert story.trial(FIRST).state == "FAILED"
        assert story.trial(FIRST).reason == "worker_lost"
        assert "3 attempts" in story.trial(FIRST).sentence
        assert story.search.state == "RUNNING"

    def test_given_back_by_a_worker_that_stops_is_no_loss(self, story: Story) -> None:
        for _ in range(5):
            assert story.release(story.begin(REFERENCE), "worker_stopped")
        assert story.trial(REFERENCE).losses == 0
        assert "LOST" not in story.told_of(REFERENCE)

    def test_is_lost_once_however_many_reapers_look(self, story: Story) -> None:
        story.begin(REFERENCE)
        story.later(61)
        at_once(lambda _: story.recover())
        assert story.trial(REFERENCE).losses == 1


class TestTheEnd:
    def test_comes_with_the_measurement(self, story: Story) -> None:
        story.run(REFERENCE, *BASELINES, FIRST, SECOND, MEASUREMENT)
        assert story.search.state == "SUCCEEDED"
        assert story.search.ended_at == story.now
        assert story.search.progress.done == story.search.progress.total == 8

    def test_a_failed_candidate_is_no_failed_search(self, story: Story) -> None:
        story.run(REFERENCE, *BASELINES)
        story.run(FIRST, state="FAILED", reason="not_finite")
        story.run(SECOND, MEASUREMENT)
        assert story.search.state == "SUCCEEDED"

    def test_a_failed_reference_is(self, story: Story) -> None:
        story.run(REFERENCE, state="FAILED", reason="not_finite", sentence="the loss is NaN")
        assert (story.search.state, story.search.reason) == ("FAILED", "not_finite")
        assert "the loss is NaN" in story.search.sentence
        assert story.states[1:] == ["CANCELLED"] * 7
        assert story.trial(1).reason == "prerequisite_failed"

    def test_a_failed_measurement_is(self, story: Story) -> None:
        story.run(REFERENCE, *BASELINES, FIRST, SECOND)
        story.run(MEASUREMENT, state="FAILED", reason="error")
        assert (story.search.state, story.search.reason) == ("FAILED", "error")

    def test_trials_that_end_at_the_same_moment_are_all_seen(self, database: Database) -> None:
        story = Story(database, compute={"trials": 0})
        story.run(REFERENCE)
        claims = [story.begin(number) for number in BASELINES]
        assert all(at_once(lambda index: story.finish(claims[index]), times=4))
        assert story.hints() == [5]

    def test_is_told_by_events_in_order(self, story: Story) -> None:
        story.run(REFERENCE, *BASELINES, FIRST, SECOND, MEASUREMENT)
        events = story.events
        assert [event.id for event in events] == sorted({event.id for event in events})
        assert story.told_of(None) == ["QUEUED", "RUNNING", "SUCCEEDED"]
        assert all(story.told_of(n) == ["WAITING", "RUNNING", "COMPLETE"] for n in range(8))
        assert {event.request_id for event in events} == {"request-1"}
        with story.database.read() as session:
            assert jobs.events(session, story.id, after=events[3].id, limit=2) == events[4:6]


class TestManyWorkers:
    """Threads claim, lose, renew and finish at random while reapers and senders run."""

    def work(self, story: Story, index: int) -> None:
        choice = Random(index)
        while story.search.live:
            for number in story.hints() or range(8):
                claim = story.claim(number, f"worker {index}")
                if claim is None:
                    continue
                story.record(claim, ("validation_loss", index, 1.0))
                if choice.random() < 0.3:
                    story.release(claim, limit=1000)
                story.recover(limit=1000)
                story.finish(claim, metrics={"validation_loss": 1.0})

    def test_finish_a_search_with_every_trial_counted_once(self, story: Story) -> None:
        at_once(lambda index: self.work(story, index), times=6)
        assert story.search.state == "SUCCEEDED"
        assert all(story.told_of(number).count("COMPLETE") == 1 for number in range(8))
        assert story.told_of(None) == ["QUEUED", "RUNNING", "SUCCEEDED"]


class TestASearchThatFindsNothing:
    def test_fails_for_the_reason_of_the_first_that_failed(self, story: Story) -> None:
        story.run(REFERENCE)
        for number in (*BASELINES, FIRST):
            story.finish(story.begin(number), "FAILED", "not_finite", sentence="at step 3")
        assert story.search.state == "RUNNING"
        story.finish(story.begin(SECOND), "PRUNED", "pruned")
        search = story.search
        assert (search.state, search.reason) == ("FAILED", "not_finite")
        assert search.sentence == f"{story.trial(BASELINES[0]).name}: at step 3"
        assert story.trial(MEASUREMENT).reason == "prerequisite_failed"

    def test_is_none_where_one_is_complete(self, story: Story) -> None:
        story.run(REFERENCE, BASELINES[0])
        for number in (*BASELINES[1:], FIRST, SECOND):
            story.finish(story.begin(number), "FAILED", "not_finite")
        story.run(MEASUREMENT)
        assert story.search.state == "SUCCEEDED"


class TestACancel:
    def test_ends_at_once_what_has_not_begun(self, story: Story) -> None:
        assert story.cancel().state == "CANCELLED"
        assert story.states == ["CANCELLED"] * 8
        assert story.told_of(None) == ["QUEUED", "STOPPING", "CANCELLED"]
        assert story.events[-1].request_id == "request-2"

    def test_is_the_request_that_what_follows_is_done_on(self, story: Story) -> None:
        claim = story.begin(REFERENCE)
        story.cancel()
        story.finish(claim, "CANCELLED", "user_cancel")
        assert story.told_of(None)[-1] == "CANCELLED"
        assert [event.request_id for event in story.events[-2:]] == ["request-2"] * 2
        assert {event.actor for event in story.events[-2:]} == {"worker one"}

    def test_asks_what_runs_to_stop(self, story: Story) -> None:
        story.run(REFERENCE)
        claim = story.begin(FIRST)
        assert story.cancel().state == "STOPPING"
        assert story.renew(claim) == jobs.Renewal(still_mine=True, stop=True)
        assert story.record(claim) == jobs.Renewal(still_mine=True, stop=True)
        assert story.claim(1) is None
        assert story.finish(claim, "CANCELLED", "user_cancel")
        assert (story.search.state, story.search.reason) == ("CANCELLED", "user_cancel")

    def test_needs_no_answer_from_a_worker_that_died(self, story: Story) -> None:
        story.begin(REFERENCE)
        story.cancel()
        story.later(61)
        story.recover()
        assert story.trial(REFERENCE).state == "CANCELLED"
        assert story.search.state == "CANCELLED"

    def test_may_be_repeated(self, story: Story) -> None:
        story.cancel()
        events = story.events
        assert story.cancel().state == "CANCELLED"
        assert story.events == events

    def test_comes_too_late_for_what_has_ended(self, story: Story) -> None:
        story.run(REFERENCE, *BASELINES, FIRST, SECOND, MEASUREMENT)
        with pytest.raises(WrongState, match="SUCCEEDED"):
            story.cancel()


class TestTheDeadline:
    def test_cancels_the_candidates_left_and_still_measures(self, database: Database) -> None:
        story = Story(database, compute={"trials": 2, "seconds": 100})
        story.run(REFERENCE, *BASELINES)
        running = story.begin(FIRST)
        story.later(101)
        assert story.renew(running).stop is False
        assert story.claim(SECOND) is None
        story.recover()
        assert story.trial(SECOND).reason == "compute_exhausted"
        assert story.finish(running)
        story.run(MEASUREMENT)
        assert (story.search.state, story.search.reason) == ("SUCCEEDED", "compute_exhausted")

    def test_counts_from_the_first_claim(self, database: Database) -> None:
        story = Story(database, compute={"trials": 1, "seconds": 100})
        story.later(1000)
        story.run(REFERENCE)
        assert story.search.deadline_at is not None
        assert (story.search.deadline_at - story.now).total_seconds() == 100
        story.begin(FIRST)


class TestHints:
    def test_go_out_for_what_may_start_and_not_again_soon(self, story: Story) -> None:
        assert story.hints() == [REFERENCE]
        assert story.hints() == []
        story.later(LEASE.total_seconds())
        assert story.hints() == [REFERENCE]

    def test_follow_the_plan(self, story: Story) -> None:
        story.run(REFERENCE)
        assert story.hints() == [*BASELINES, FIRST]
        story.run(*BASELINES)
        assert story.hints() == []
        story.run(FIRST)
        assert story.hints() == [SECOND]
        story.run(SECOND)
        assert story.hints() == [MEASUREMENT]

    def test_follow_the_plan_for_parallel_candidates(self, database: Database) -> None:
        story = Story(database, compute={"trials": 3, "parallel": 2})
        story.run(REFERENCE)
        assert story.hints() == [*BASELINES, 5, 6]
        story.run(6)
        assert story.hints() == []
        story.run(5)
        assert story.hints() == [7]

    def test_are_each_sent_by_one_of_many_senders(self, story: Story) -> None:
        story.run(REFERENCE)
        sent = [number for numbers in at_once(lambda _: story.hints()) for number in numbers]
        assert sorted(sent) == [*BASELINES, FIRST]

    def test_never_name_a_search_that_is_being_stopped(self, story: Story) -> None:
        story.begin(REFERENCE)
        story.cancel()
        assert story.hints() == []
