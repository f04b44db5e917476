"""What many tests ask for: servers of a test run's own, and layers that the compiler can trace."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from service.db.migrations import upgrade
from service.db.session import Database
from tests.servers import Postgres, Valkey


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server on a free port."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(postgres: Postgres) -> str:
    """Its URL without a database."""
    return postgres.url


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """The name of a migrated database that others are copied from."""
    postgres.execute("CREATE DATABASE migrated")
    upgrade(f"{postgres.url}/migrated")
    return "migrated"


@pytest.fixture
def postgres_url(postgres: Postgres, postgres_template: str) -> Iterator[str]:
    """A migrated PostgreSQL database of the test's own."""
    name = f"test_{uuid4().hex}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield f"{postgres.url}/{name}"
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that others are copied from."""
    path = tmp_path_factory.mktemp("sqlite") / "matnas.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated SQLite database of the test's own."""
    path = shutil.copy(sqlite_template, tmp_path / "matnas.db")
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Either database, migrated and empty: what is promised, both must keep."""
    kind = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    opened = Database(request.getfixturevalue(kind))
    yield opened
    opened.dispose()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A Valkey server, which speaks Redis's protocol, on a free port."""
    with Valkey() as server:
        yield server.url


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without jaxtyping's checks, if any are on: the compiler cannot trace them."""
    import torch
    from jaxtyping import config

    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)  # noqa: FBT003
    torch.compiler.reset()
    yield
    config.update("jaxtyping_disable", before)
