"""A backup, made and restored as docs/operations.md says: nothing of it is lost."""

import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from service import jobs
from service.artifacts import ArtifactStore
from service.db.migrations import upgrade
from service.db.session import Database
from tests.integration.story import BASELINES, LEASE, REFERENCE, Story
from tests.servers import Postgres

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def documented(command: str) -> None:
    """What is done here is what the page says."""
    assert command in OPERATIONS


def sqlite(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Callable[[], str]]:
    documented("VACUUM INTO")
    url = request.getfixturevalue("sqlite_url")

    def restored() -> str:
        backup = tmp_path / "backup.db"
        with Database(url).engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql(f"VACUUM INTO '{backup}'")
        return f"sqlite:///{backup}"

    return url, restored


def postgresql(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Callable[[], str]]:
    documented("pg_dump --format=custom")
    documented("pg_restore --clean --if-exists --no-owner")
    server: Postgres = request.getfixturevalue("postgres")
    url = request.getfixturevalue("postgres_url")

    def restored() -> str:
        backup, name = tmp_path / "backup.dump", f"restored_{uuid4().hex}"
        dump = [f"{server.binaries}/pg_dump", "--format=custom", f"--file={backup}", url]
        subprocess.run(dump, check=True)
        server.execute(f"CREATE DATABASE {name}")
        into = f"--dbname={server.url}/{name}"
        restore = ["--clean", "--if-exists", "--no-owner", into, str(backup)]
        subprocess.run([f"{server.binaries}/pg_restore", *restore], check=True)
        return f"{server.url}/{name}"

    return url, restored


@pytest.mark.parametrize("kind", [sqlite, postgresql])
def test_a_restored_backup_goes_on_where_it_was_made(
    kind: Callable[[Path, pytest.FixtureRequest], tuple[str, Callable[[], str]]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    url, restored = kind(tmp_path, request)
    story, store = Story(Database(url)), ArtifactStore(tmp_path / "home")
    story.run(REFERENCE)
    export = store.attempt(story.id, REFERENCE, 1) / "export/network.json"
    export.parent.mkdir(parents=True)
    export.write_text("a network")
    store.save(story.id, REFERENCE, 1)
    running = story.begin(BASELINES[0])
    before = story.events
    story.database.dispose()
    # The rows first, then the files: what the rows name is then there.
    backup = restored()
    shutil.copytree(tmp_path / "home", tmp_path / "restored")
    shutil.rmtree(tmp_path / "home")
    upgrade(backup)  # harmless, and an older backup needs it
    story.database = Database(backup)
    assert story.events == before
    (file,) = ArtifactStore(tmp_path / "restored").exports(story.id, REFERENCE, 1)
    assert ArtifactStore(tmp_path / "restored").fetch(file).read_text() == "a network"
    # What ran is found again, and whoever ran it then is fenced off.
    story.now = max(datetime.now(UTC), story.now) + LEASE + timedelta(seconds=1)
    story.recover()
    again = story.begin(BASELINES[0])
    assert again.attempt == running.attempt + 1
    assert not story.finish(running)
    assert story.finish(again)
    with story.database.read() as session:
        assert jobs.get_search(session, story.id, now=story.now).state == "RUNNING"
    story.database.dispose()
