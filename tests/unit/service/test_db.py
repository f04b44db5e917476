"""Transactions: one `with` is one of them, and moments keep their zone."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import StatementError

from service import jobs
from service.db.session import Database, clock
from service.db.tables import SearchRow, TrialRow
from tests.integration.story import Story


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    story = Story(database)

    def fail() -> None:
        with database.write() as session:
            jobs.cancel(session, story.id, story.asked())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert story.search.state == "QUEUED"


def test_what_is_only_read_is_not_kept(database: Database) -> None:
    story = Story(database)
    with database.read() as session:
        jobs.cancel(session, story.id, story.asked())
    assert story.search.state == "QUEUED"


def test_a_reader_does_not_see_what_others_commit_meanwhile(database: Database) -> None:
    story = Story(database)
    states = select(SearchRow.state).where(SearchRow.id == story.id)
    with database.read() as session:
        before = session.scalar(states)
        story.cancel()
        assert session.scalar(states) == before


def test_a_moment_comes_back_in_utc(database: Database) -> None:
    story = Story(database)
    elsewhere = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    with database.write() as session:
        session.get_one(TrialRow, f"{story.id}-0").hinted_at = elsewhere
    with database.read() as session:
        kept = session.get_one(TrialRow, f"{story.id}-0").hinted_at
    assert kept == datetime(2026, 1, 1, tzinfo=UTC)
    assert kept.tzinfo is UTC


def test_a_moment_without_a_zone_is_refused(database: Database) -> None:
    with database.write() as session, pytest.raises(StatementError, match="time zone"):
        jobs.note_worker(session, "one", now=datetime(2026, 1, 1))  # noqa: DTZ001


def test_the_clock_is_near_this_machines(database: Database) -> None:
    with database.read() as session:
        told = clock(session)
    assert abs(told - datetime.now(UTC)) < timedelta(seconds=5)
    assert told.tzinfo is UTC


def test_sqlite_waits_its_turn_and_keeps_its_references(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.read() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    database.dispose()
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30000}
