"""Many rows and many who ask, in small; `benchmarks.load` does it in full."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from sqlalchemy import Connection, event, select, text

from benchmarks.load import SPEC, Heard, all_open, asked, look
from benchmarks.seed_database import Size, seed
from benchmarks.seed_rows import many
from search.spec import SearchSpec
from service import jobs
from service.db.session import Database
from service.db.tables import AnswerRow, SearchRow, TagRow
from service.jobs.best import bests_of, noted_bests
from service.jobs.transitions import trials_of
from tests.servers import Postgres

SMALL = Size(searches=60, trials=12, points=4, largest=100)
NOW = datetime(2026, 11, 2, tzinfo=UTC)
FILTERS: tuple[dict[str, Any], ...] = (
    {"state": "RUNNING"},
    {"tag": "paper"},
    {"model": "vit"},
    {"dataset": "digits"},
    {"name": "search 17"},
    {"created_after": NOW},
    {"created_before": NOW},
    {"loss_from": 0.2, "loss_to": 0.3},
)


@pytest.fixture(scope="module")
def seeded(postgres: Postgres) -> Iterator[str]:
    postgres.execute("CREATE DATABASE seeded")
    url = f"{postgres.url}/seeded"
    seed(url, SMALL)
    yield url
    postgres.execute("DROP DATABASE seeded WITH (FORCE)")


def test_the_same_seed_makes_the_same_rows() -> None:
    first, second = (list(many(searches=5, trials=10, points=4, largest=20, seed=3)) for _ in "ab")
    assert first == second
    assert [len(rows["trials"]) for rows in first] == [10, 10, 10, 10, 20]


def test_seeded_searches_are_searches(database: Database) -> None:
    with database.engine.connect() as connection:
        url = connection.engine.url.render_as_string(hide_password=False)
    seed(url, Size(searches=30, trials=10, points=4, largest=20))
    with database.read() as session:
        page = jobs.list_searches(session, jobs.SearchFilter(), now=NOW, limit=100)
        assert [view.progress.total for view in page.searches] == [20] + 29 * [10]
        assert {view.state for view in page.searches} >= {"SUCCEEDED", "RUNNING"}
        rows = session.scalars(select(SearchRow)).all()
        # What a row keeps of its bests is what its trials say.
        specs = [(row, SearchSpec.model_validate(row.spec)) for row in rows]
        noted = noted_bests(session, specs)
        for row, spec in specs:
            assert noted[row.id] == bests_of(row, spec, trials_of(session, row.id))
            row.bests = None
        assert noted_bests(session, specs) == noted
        session.rollback()


@pytest.mark.parametrize("sort", get_args(jobs.SearchSort))
def test_lists_of_searches_are_read_in_the_order_of_an_index(
    seeded: str, sort: jobs.SearchSort
) -> None:
    for cursor in (None, _second_page(seeded, sort)):
        plans = _plans(
            seeded,
            lambda session, cursor=cursor: jobs.list_searches(
                session, jobs.SearchFilter(), now=NOW, sort=sort, limit=5, cursor=cursor
            ),
        )
        assert "Index" in plans["searches"]
        assert "Sort" not in plans["searches"]
        assert "Seq Scan" not in "".join(plans.values())


@pytest.mark.parametrize("wanted", FILTERS, ids=lambda wanted: next(iter(wanted)))
def test_every_filter_of_searches_has_an_index(seeded: str, wanted: dict[str, Any]) -> None:
    plans = _plans(
        seeded,
        lambda session: jobs.list_searches(session, jobs.SearchFilter(**wanted), now=NOW),
    )
    assert "Seq Scan" not in "".join(plans.values())


@pytest.mark.parametrize("sort", get_args(jobs.TrialSort))
def test_lists_of_trials_are_read_in_the_order_of_an_index(
    seeded: str, sort: jobs.TrialSort
) -> None:
    search_id = _newest(seeded)
    plans = _plans(
        seeded,
        lambda session: jobs.page_of_trials(
            session, search_id, jobs.TrialFilter(), now=NOW, sort=sort, limit=5
        ),
    )
    assert "Sort" not in plans["trials"]
    assert "Seq Scan" not in "".join(plans.values())


def test_a_stream_that_cannot_be_opened_ends_the_wait_for_all() -> None:
    async def refused() -> None:
        raise AssertionError(503)

    async def waiting() -> None:
        tasks = [asyncio.create_task(one) for one in (refused(), asyncio.sleep(60))]
        try:
            await asyncio.wait_for(all_open(Heard(open=199), tasks), 5)
        finally:
            tasks[-1].cancel()

    with pytest.raises(AssertionError, match="503"):
        asyncio.run(waiting())


def test_under_load_nothing_is_refused_lost_or_done_twice(seeded: str) -> None:
    largest = look(seeded).largest
    _leave_over(seeded)
    assert look(seeded).largest == largest  # which is not the newest
    line = asked(seeded, seconds=0.4, starts=1)
    assert _ours(seeded) == (0, 0)
    kept = line["submissions_kept"]
    assert kept["sent"] == kept["promised"] == kept["in_database"] == 20
    assert (kept["lost"], kept["doubled"]) == (0, 0)
    kinds = ("status", "lists", "compare", "trials", "submissions")
    assert {kind: line[kind]["refused"] for kind in kinds} == dict.fromkeys(kinds, 0)
    assert line["streams"]["open"] == 200
    assert line["resident_megabytes"]["loaded"] < 250


def _leave_over(url: str) -> None:
    """A search, and the answer that was given to its submission, as of an interrupted run."""
    spec = SearchSpec.model_validate({**SPEC, "tags": ["load-0"]})
    database = Database(url)
    with database.write() as session:
        jobs.submit(session, spec, resolved=jobs.resolve_spec(session, spec), now=datetime.now(UTC))
        row = AnswerRow(key="load-0-7", body_sha256="0" * 64, created_at=datetime.now(UTC))
        session.add(row)
    database.dispose()
    assert _ours(url) == (1, 1)


def _ours(url: str) -> tuple[int, int]:
    """How many searches and answers there are of `benchmarks.load`."""
    database = Database(url)
    with database.read() as session:
        tags = session.scalars(select(TagRow).where(TagRow.tag.like("load-%"))).all()
        answers = session.scalars(select(AnswerRow).where(AnswerRow.key.like("load-%"))).all()
    database.dispose()
    return len(tags), len(answers)


def _newest(url: str) -> str:
    database = Database(url)
    with database.read() as session:
        page = jobs.list_searches(session, jobs.SearchFilter(), now=NOW, limit=1)
    database.dispose()
    return page.searches[0].id


def _second_page(url: str, sort: jobs.SearchSort) -> str | None:
    database = Database(url)
    with database.read() as session:
        page = jobs.list_searches(session, jobs.SearchFilter(), now=NOW, sort=sort, limit=5)
    database.dispose()
    return page.cursor


def _plans(url: str, read: Any) -> dict[str, str]:
    """By the first table that each statement reads, how PostgreSQL would, whatever is small."""
    database = Database(url)
    statements: list[tuple[str, Any]] = []

    def keep(_: Connection, __: object, statement: str, parameters: Any, *___: object) -> None:
        statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", keep)
    with database.read() as session:
        read(session)
    event.remove(database.engine, "before_cursor_execute", keep)
    found: dict[str, str] = {}
    with database.engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        for statement, parameters in statements:
            explained = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            table = statement.partition("FROM ")[2].split()[0]
            found.setdefault(table, "\n".join(row[0] for row in explained))
    database.dispose()
    return found
