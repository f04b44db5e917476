"""Hints: sent after the commit and only then, whole, and never at the cost of a request."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from service import queue
from service.db.session import Database
from service.settings import Settings, get_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with a broker of its own, for the app of this process."""
    monkeypatch.setenv("MATNAS_HOME", str(tmp_path))
    get_settings.cache_clear()
    queue.celery_app.cache_clear()
    yield tmp_path
    get_settings.cache_clear()
    queue.celery_app.cache_clear()


@pytest.fixture
def rows(sqlite_url: str) -> Iterator[Database]:
    opened = Database(sqlite_url)
    yield opened
    opened.dispose()


def sent(home: Path) -> list[str]:
    """The ids that lie in the broker's folder, in the order in which workers take them."""
    found = []
    for path in sorted((home / "broker/messages").glob("*")):
        with queue.make_app(Settings(home=home)).connection() as connection:
            message = connection.default_channel.Message(
                json.loads(path.read_text()), channel=connection.default_channel
            )
            assert message.headers["task"] == queue.RUN_TRIAL
            ((trial_id,), _, _) = message.decode()
            found.append(trial_id)
    return found


def test_hints_leave_with_the_commit_and_carry_ids(home: Path, rows: Database) -> None:
    with rows.write() as session:
        queue.send_after_commit(session, ["srch_1-0", "srch_1-1"])
        assert not (home / "broker").exists()
    assert sent(home) == ["srch_1-0", "srch_1-1"]


def test_no_hint_leaves_without_the_commit(home: Path, rows: Database) -> None:
    def fail() -> None:
        with rows.write() as session:
            queue.send_after_commit(session, ["srch_1-0"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not (home / "broker").exists()


def test_a_broker_that_is_away_refuses_no_request(
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    rows: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MATNAS_BROKER_URL", "redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING), rows.write() as session:
        queue.send_after_commit(session, ["srch_1-0", "srch_1-1"])
    assert caplog.text.count("no hint could be sent for trial srch_1-0") == 1


def test_a_message_is_taken_once_and_never_half_written(home: Path) -> None:
    app = queue.make_app(Settings(home=home))
    with app.connection() as connection:
        channel = connection.default_channel
        channel._put("matnas", {"body": "x"})
        (home / "broker/messages/00_later.matnas.msg.part").write_text("{")
        assert channel._size("matnas") == 1
        assert channel._get("matnas") == {"body": "x"}
        assert channel._size("matnas") == 0


@pytest.mark.parametrize("url", ["filesystem://", "redis://localhost/0"])
def test_a_worker_holds_no_message_that_another_could_work_on(url: str, tmp_path: Path) -> None:
    conf = queue.make_app(Settings(home=tmp_path, broker_url=url)).conf
    assert conf.worker_prefetch_multiplier == 1
    # Redis has a switch for it; elsewhere what runs is what is not acknowledged.
    assert conf.worker_disable_prefetch != conf.task_acks_late


def test_nothing_but_json_is_read(tmp_path: Path) -> None:
    app: Celery = queue.make_app(Settings(home=tmp_path))
    assert list(app.conf.accept_content) == ["json"]
