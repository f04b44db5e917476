"""How a transaction is opened: one `with` is one transaction, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from service import tracing

# A writer waits this long for another's transaction, each of which takes milliseconds.
BUSY_TIMEOUT_SECONDS = 30.0
# The server gives up who has begun a transaction and says nothing for so long: a process that is
# stopped within one would keep its rows locked, so that nobody else could put its trials back.
SILENT_SECONDS = 15
# Of each process; the API has as many threads, for more of them would only wait for each other.
CONNECTIONS = 15
# As long for a lock as on SQLite; and a server that has vanished is given up.
PATIENCE_WITH_POSTGRES = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "tcp_user_timeout": 30_000,
    "options": (
        f"-c lock_timeout={BUSY_TIMEOUT_SECONDS:.0f}s "
        f"-c idle_in_transaction_session_timeout={SILENT_SECONDS}s"
    ),
}


@final
class Database:
    """The engine of one process, and its two kinds of transaction."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        tracing.watch(self.engine)
        self._reading = self.engine.execution_options(matnas_begin="BEGIN")
        if self.engine.dialect.name != "sqlite":
            # Otherwise each statement would see what others have committed since the one before.
            self._reading = self.engine.execution_options(isolation_level="REPEATABLE READ")
        self._writing = self.engine.execution_options(matnas_begin="BEGIN IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A consistent view, given up at the end."""
        with Session(self._reading, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction, committed at the end unless an exception passes."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def dispose(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def clock(session: Session) -> datetime:
    """The time that leases are told in: the server's on PostgreSQL, where hosts may disagree."""
    if session.get_bind().dialect.name == "postgresql":
        server_time: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return server_time.astimezone(UTC)
    return datetime.now(UTC)


def tables_are_missing(error: DBAPIError) -> bool:
    """Whether a statement failed because the migrations have not been run, in either's words."""
    said = str(error.orig)
    in_postgres = getattr(error.orig, "sqlstate", None) in ("42P01", "42703")
    return in_postgres or "no such table" in said or "no such column" in said


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        # Kept: what comes on top would be opened for one request.
        return create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=CONNECTIONS,
            max_overflow=0,
            connect_args=PATIENCE_WITH_POSTGRES,
        )
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would open deferred transactions by itself; _begin_sqlite opens ours.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that begins to write is refused, not queued, if another wrote since.
    connection.exec_driver_sql(
        connection.get_execution_options().get("matnas_begin", "BEGIN IMMEDIATE")
    )
