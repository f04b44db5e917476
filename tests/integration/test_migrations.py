"""The migrations lead from nothing to exactly the tables that the code knows."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from service.db import migrations
from service.db.migrations import at_head, upgrade
from service.db.session import Database
from service.db.tables import Base

SEARCHES, TRIALS = Base.metadata.tables["searches"], Base.metadata.tables["trials"]
ROWS = {"searches": 3, "trials": 6, "metric_points": 3, "events": 1}
SCRIPTS = ScriptDirectory.from_config(migrations._config())
REVISIONS = [step.revision for step in reversed(list(SCRIPTS.walk_revisions()))]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{request.getfixturevalue('tmp_path')}/deep/down/new.db"
        return
    server = request.getfixturevalue("postgres_server")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE unmigrated")
        yield f"{server}/unmigrated"
        connection.execute("DROP DATABASE unmigrated WITH (FORCE)")


def test_from_an_empty_database_to_the_tables(empty_url: str) -> None:
    database = Database(empty_url)
    with database.engine.connect() as connection:
        assert not at_head(connection)
    upgrade(empty_url)
    with database.engine.connect() as connection:
        assert at_head(connection)
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert set(Base.metadata.tables) <= set(inspect(connection).get_table_names())
    database.dispose()


def test_may_be_repeated(empty_url: str) -> None:
    upgrade(empty_url)
    upgrade(empty_url)


def test_lead_back_to_nothing(empty_url: str) -> None:
    upgrade(empty_url)
    database = Database(empty_url)
    migrate(database, command.downgrade, "base")
    with database.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    database.dispose()


def test_rows_are_there_after_every_step_up_and_down(empty_url: str) -> None:
    database = Database(empty_url)
    migrate(database, command.upgrade, "0001")
    fill(database)
    for revision in REVISIONS[1:]:
        migrate(database, command.upgrade, revision)
        assert counted(database) == ROWS, revision
    assert read(database, SEARCHES, "best_loss") == {"a": 0.25, "b": None, "c": None}
    losses = {"a-0": 0.125, "a-1": 0.5, "a-2": 0.25, "a-3": 0.0, "b-0": None, "c-0": None}
    assert read(database, TRIALS, "loss") == losses
    ran = read(database, TRIALS, "ran_seconds")
    assert ran == pytest.approx({**dict.fromkeys(losses, 0.0), "a-0": 90.5, "a-1": 90.5}, abs=1e-3)
    begun = read(database, TRIALS, "begun_at")
    assert {name for name, moment in begun.items() if moment is not None} == {"b-0"}
    for revision in reversed(REVISIONS[:-1]):
        migrate(database, command.downgrade, revision)
        assert counted(database) == ROWS, revision
    before = read(database, TRIALS, "metrics")
    upgrade(empty_url)
    assert read(database, TRIALS, "loss") == losses
    assert read(database, TRIALS, "metrics") == before
    database.dispose()


def migrate(database: Database, way: Callable[[Config, str], None], revision: str) -> None:
    with database.engine.begin() as connection:
        config = migrations._config()
        config.attributes["connection"] = connection
        way(config, revision)


def fill(database: Database) -> None:
    """Put rows into the first tables, of whatever later steps make something."""
    names = ("searches", "trials", "metric_points", "events")
    searches, trials, points, events = (as_first(database, name) for name in names)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    ended = began + timedelta(seconds=90.5)
    told: dict[str, Any] = {
        "model": "mlp",
        "dataset": "digits",
        "spec": {},
        "eligible": [],
        "network": {},
    }
    told |= {"quantity": "macs", "budget": 100, "dense_cost": 200, "smallest_cost": 1}
    told |= {"state": "RUNNING", "reason": "", "sentence": "", "version": 1, "created_at": began}
    tried: dict[str, Any] = {
        "kind": "candidate",
        "repeat": 0,
        "reason": "",
        "sentence": "",
        "attempt": 1,
    }
    tried |= {"losses": 0, "name": "trial"}

    def trial(search: str, number: int, state: str, **more: Any) -> dict[str, Any]:
        nothing = dict.fromkeys(("metrics", "cost", "started_at", "ended_at"))
        own = {"id": f"{search}-{number}", "search_id": search, "number": number, "state": state}
        return tried | nothing | own | more

    def complete(number: int, loss: float, cost: int, **times: Any) -> dict[str, Any]:
        return trial("a", number, "COMPLETE", metrics={"validation_loss": loss}, cost=cost, **times)

    with database.engine.begin() as connection:
        connection.execute(sa.insert(searches), [told | {"id": name} for name in "abc"])
        connection.execute(
            sa.insert(trials),
            [
                complete(0, 0.125, 200, started_at=began, ended_at=ended),  # dearer than the budget
                complete(1, 0.5, 100, started_at=began, ended_at=ended),
                complete(2, 0.25, 99, started_at=ended, ended_at=began),  # by another clock
                trial("a", 3, "PRUNED", metrics={"validation_loss": 0.0}, cost=1),
                trial("b", 0, "RUNNING", started_at=began, metrics={"validation_loss": None}),
                trial("c", 0, "WAITING"),
            ],
        )
        connection.execute(
            sa.insert(points),
            [{"trial_id": "a-0", "name": "loss", "step": step, "value": 1.5} for step in range(3)],
        )
        said = {"kind": "search", "state": "QUEUED", "reason": "", "sentence": "", "actor": "one"}
        connection.execute(sa.insert(events).values(search_id="a", at=began, **said))


def as_first(database: Database, name: str) -> sa.Table:
    """A table with the columns that it has just now, by the types of today."""
    metadata = sa.MetaData()
    there = {column["name"] for column in inspect(database.engine).get_columns(name)}
    columns = [sa.Column(one.name, one.type) for one in Base.metadata.tables[name].columns]
    return sa.Table(name, metadata, *(column for column in columns if column.name in there))


def counted(database: Database) -> dict[str, int]:
    with database.engine.connect() as connection:
        return {
            name: connection.scalar(sa.text(f"SELECT count(*) FROM {name}")) or 0 for name in ROWS
        }


def read(database: Database, table: sa.Table, column: str) -> dict[str, Any]:
    found = as_first(database, table.name).c
    with database.engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(sa.select(found.id, found[column]))}
