"""The migrations lead from nothing to exactly the tables that the code knows."""

from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from service.db import migrations
from service.db.migrations import at_head, upgrade
from service.db.session import Database
from service.db.tables import Base


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
    with database.engine.begin() as connection:
        config = migrations._config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with database.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    database.dispose()
