"""Fill an empty database as years of use would: searches, trials, curves and events.

`python -m benchmarks.seed_database URL [--quick]` migrates and fills the database at the URL, and
`--home FOLDER` one of a PostgreSQL whose data stay in that folder, for benchmarks.load to start it
again. One JSON line at the end; how far it has come is said meanwhile.
"""

import argparse
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import psycopg
from sqlalchemy import make_url

from benchmarks.seed_rows import COLUMNS, Rows, many
from service.db.migrations import upgrade
from tests.servers import Postgres

DATABASE = "matnas"
# The rows of so many searches are one transaction.
TOGETHER = 50
# What is lost when this machine fails is made again. There are about as many connections as the
# service opens, and the memory is a small server's.
OPTIONS = (
    *("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"),
    *("-c", "max_wal_size=8GB", "-c", "shared_buffers=1GB", "-c", "maintenance_work_mem=512MB"),
)

Put = Callable[[Rows], None]


@final
@dataclass(frozen=True, slots=True)
class Size:
    """How much there is to be: trials of each search, points of each trial.

    The newest search is one of its own, of `largest` trials.
    """

    searches: int
    trials: int
    points: int
    largest: int


FULL = Size(searches=10_000, trials=100, points=12, largest=10_000)
EMBEDDED = Size(searches=1_000, trials=100, points=12, largest=1_000)
QUICK = Size(searches=40, trials=12, points=4, largest=200)


def main() -> None:
    """Read the command line, fill the database, print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", help="of an empty database")
    parser.add_argument("--home", type=Path, help="of a PostgreSQL of its own, instead of a URL")
    parser.add_argument("--quick", action="store_true", help="some dozens of searches")
    parser.add_argument("--seed", type=int, default=0)
    for name in asdict(FULL):
        parser.add_argument(f"--{name}", type=int, help=f"{getattr(FULL, name):,} unless told")
    options = parser.parse_args()
    if (options.url is None) == (options.home is None):
        parser.error("give either a URL or --home")
    usual = QUICK if options.quick else FULL
    if options.url and make_url(options.url).get_backend_name() == "sqlite" and not options.quick:
        usual = EMBEDDED
    given = {name: getattr(options, name) for name in asdict(FULL)}
    size = Size(**{name: given[name] or usual_one for name, usual_one in asdict(usual).items()})
    with database(options.url, options.home) as url:
        line = seed(url, size, seed=options.seed)
    print(json.dumps({"benchmark": "seed_database", **asdict(size), **line}))


@contextmanager
def database(url: str | None, home: Path | None) -> Iterator[str]:
    """The database at the URL, or the one whose data are in a folder."""
    if home is None:
        assert url is not None
        yield url
        return
    new = not (home / "data").exists()
    with Postgres(OPTIONS, home=home.resolve()) as server:
        if new:
            server.execute(f"CREATE DATABASE {DATABASE}")
        yield f"{server.url}/{DATABASE}"


def seed(url: str, size: Size, *, seed: int = 0) -> dict[str, Any]:
    """Fill a database, and say with how many rows."""
    began = time.monotonic()
    upgrade(url)
    into = _into_sqlite if make_url(url).get_backend_name() == "sqlite" else _into_postgres
    counts = dict.fromkeys(COLUMNS, 0)
    with into(url) as put:
        together: Rows = {table: [] for table in COLUMNS}
        for done, rows in enumerate(many(**asdict(size), seed=seed), start=1):
            for table, own in rows.items():
                together[table] += own
                counts[table] += len(own)
            if done % TOGETHER == 0 or done == size.searches:
                put(together)
                together = {table: [] for table in COLUMNS}
                spent = time.monotonic() - began
                print(f"{done} of {size.searches} searches, {spent:.0f} s", file=sys.stderr)
    return {"rows": counts, "seconds": round(time.monotonic() - began, 1)}


@contextmanager
def _into_postgres(url: str) -> Iterator[Put]:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        # The rows are of one making, so that no foreign key has to be looked up for each of them.
        connection.execute("SET session_replication_role = replica")

        def put(rows: Rows) -> None:
            for table, columns in COLUMNS.items():
                statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
                with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
                    for row in rows[table]:
                        copy.write_row(row)
            connection.commit()

        yield put
        connection.execute("SET session_replication_role = origin")
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")


@contextmanager
def _into_sqlite(url: str) -> Iterator[Put]:
    file = make_url(url).database
    assert file is not None
    connection = sqlite3.connect(file)

    def put(rows: Rows) -> None:
        for table, columns in COLUMNS.items():
            places = ", ".join("?" * len(columns))
            connection.executemany(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})",
                (_plain(row) for row in rows[table]),
            )
        connection.commit()

    try:
        yield put
        connection.execute("ANALYZE")
        connection.commit()
    finally:
        connection.close()


def _plain(row: Sequence[object]) -> list[object]:
    """As SQLAlchemy writes it."""
    return [
        value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        if isinstance(value, datetime)
        else value
        for value in row
    ]


if __name__ == "__main__":
    main()
