"""A home with rows and a broker of its own, which this process and its children find."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service import queue
from service.db.session import Database
from service.settings import Settings, get_settings
from tests.integration.story import Story


@pytest.fixture
def settings(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Settings]:
    monkeypatch.setenv("MATNAS_HOME", str(tmp_path))
    monkeypatch.setenv("MATNAS_DATABASE_URL", sqlite_url)
    get_settings.cache_clear()
    queue.celery_app.cache_clear()
    yield get_settings()
    get_settings.cache_clear()
    queue.celery_app.cache_clear()


@pytest.fixture
def story(settings: Settings) -> Iterator[Story]:
    told = Story(Database(settings.database))
    yield told
    told.database.dispose()
