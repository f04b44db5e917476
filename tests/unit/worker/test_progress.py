"""A trial's progress reaches its row, and what becomes of the row reaches the trial."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy.exc import OperationalError

from search.progress import Update
from service import jobs
from service.db.session import Database
from tests.integration.story import REFERENCE, Story
from worker.progress import RowProgress, in_transaction, patiently

LEASE = timedelta(seconds=2)


@pytest.fixture
def story(sqlite_url: str) -> Iterator[Story]:
    told = Story(Database(sqlite_url))
    told.now = datetime.now(UTC)
    yield told
    told.database.dispose()


def wait(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_what_is_reported_is_written_soon(story: Story) -> None:
    claim = story.begin(REFERENCE)
    with RowProgress(story.database, claim, lease=LEASE) as progress:
        progress.report(Update("training", 1, 9))
        progress.report(Update("training", 2, 9, metrics={"validation_loss": 0.5}))
        wait(lambda: story.trial(REFERENCE).done == 2)
    assert story.trial(REFERENCE).latest == {"validation_loss": 0.5}
    assert not progress.should_stop()


def test_what_was_reported_last_is_written_before_the_end(story: Story) -> None:
    claim = story.begin(REFERENCE)
    progress = RowProgress(story.database, claim, lease=LEASE)
    progress.report(Update("training", 9, 9, metrics={"validation_loss": 0.25}))
    progress.flush()
    assert story.trial(REFERENCE).latest == {"validation_loss": 0.25}


def test_a_flush_waits_for_what_is_being_written(story: Story) -> None:
    claim = story.begin(REFERENCE)
    with RowProgress(story.database, claim, lease=timedelta(seconds=60)) as progress:
        wait(lambda: progress._renewed > 0)
        flush = Thread(target=progress.flush)
        with story.database.write() as session:
            # The thread's beat has to wait for this transaction.
            jobs.note_worker(session, "another", now=story.now)
            progress.report(Update("training", 9, 9, metrics={"validation_loss": 0.5}))
            wait(lambda: not progress._points)
            flush.start()
            flush.join(0.3)
            assert flush.is_alive()
        flush.join()
        assert story.trial(REFERENCE).latest == {"validation_loss": 0.5}


def test_the_lease_is_renewed_though_nothing_is_reported(story: Story) -> None:
    claim = story.begin(REFERENCE)
    with RowProgress(story.database, claim, lease=LEASE):
        time.sleep(1.5 * LEASE.total_seconds())
        story.now = datetime.now(UTC)
        story.recover()
    assert story.trial(REFERENCE).state == "RUNNING"


def test_a_cancelled_search_asks_the_trial_to_stop(story: Story) -> None:
    claim = story.begin(REFERENCE)
    with RowProgress(story.database, claim, lease=LEASE) as progress:
        story.cancel()
        wait(progress.should_stop)
        assert not progress.leaving


def test_a_replaced_attempt_is_asked_to_stop(story: Story) -> None:
    claim = story.begin(REFERENCE)
    with RowProgress(story.database, claim, lease=LEASE) as progress:
        story.release(claim)
        wait(progress.should_stop)


def test_a_worker_that_stops_asks_the_trial_to_leave(story: Story) -> None:
    progress = RowProgress(story.database, story.begin(REFERENCE), lease=LEASE)
    progress.leave()
    assert progress.should_stop()
    assert progress.leaving


def test_points_survive_a_database_that_does_not_answer(story: Story, tmp_path: Path) -> None:
    claim = story.begin(REFERENCE)
    file = Path(str(story.database.engine.url.database))
    away = Database(f"sqlite:///{tmp_path / 'away.db'}")
    progress = RowProgress(away, claim, lease=LEASE)
    progress.report(Update("training", 3, 9, metrics={"validation_loss": 0.5}))
    with progress:
        time.sleep(0.3)
        assert not progress.should_stop(), "an outage is no wish to stop"
        away.dispose()
        # The rows come back: the file is where the tables were missed.
        story.database.dispose()
        (tmp_path / "away.db").write_bytes(b"")
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"away.db{suffix}").unlink(missing_ok=True)
        file.rename(tmp_path / "away.db")
        wait(lambda: _done(tmp_path / "away.db", story) == 3)
    away.dispose()


def _done(path: Path, story: Story) -> int | None:
    database = Database(f"sqlite:///{path}")
    try:
        with database.read() as session:
            return jobs.get_trial(session, story.id, REFERENCE, now=story.now).done
    finally:
        database.dispose()


def test_patience_ends(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    asked = []

    def fail() -> None:
        asked.append(1)
        raise OperationalError("statement", {}, OSError("away"))

    with pytest.raises(OperationalError):
        patiently(fail, seconds=0.6)
    assert len(asked) >= 2
    assert in_transaction(database, lambda _: 7, seconds=0) == 7
    database.dispose()
