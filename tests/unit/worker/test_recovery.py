"""What was left is found again, whatever happens to the database; a bug ends the worker."""

import signal
from datetime import timedelta

import pytest
from sqlalchemy import text

from service import jobs
from service.db.session import Database
from service.settings import Settings
from tests.integration.story import REFERENCE, Story
from worker.recovery import Recovery, sweep


def test_a_sweep_puts_back_hints_and_says_that_the_worker_lives(
    settings: Settings, story: Story
) -> None:
    story.begin(REFERENCE)  # long ago, by this machine's clock
    sweep(settings, story.database)
    assert story.told_of(REFERENCE)[-2:] == ["LOST", "WAITING"]
    assert len(list((settings.home / "broker/messages").glob("*.msg"))) == 1
    with story.database.read() as session:
        seen = jobs.living_workers(session, now=story.now, within=timedelta(seconds=1))
    assert seen == 1


def test_a_database_that_is_away_is_asked_again(settings: Settings, story: Story) -> None:
    heartbeat = settings.home / "heartbeat"
    quick = settings.model_copy(update={"reap_seconds": 0.01, "heartbeat": heartbeat})
    recovery = Recovery(quick, story.database)
    with story.database.write() as session:
        session.execute(text("ALTER TABLE workers RENAME TO elsewhere"))
    recovery.start()
    while not heartbeat.exists():
        pass
    with story.database.write() as session:
        session.execute(text("ALTER TABLE elsewhere RENAME TO workers"))
    story.begin(REFERENCE)
    for _ in range(500):
        if "LOST" in story.told_of(REFERENCE):
            break
    recovery.stop()
    recovery._thread.join()
    assert "LOST" in story.told_of(REFERENCE)


def test_a_bug_ends_the_worker_instead_of_leaving_it_idle(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    never_opened: Database = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        Recovery(settings, never_opened)._run()
    assert raised == [signal.SIGTERM]
