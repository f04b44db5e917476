"""Many who decide about one search at once wait for each other, and stop nobody else."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest

from service.api.app import SPARE_CONNECTIONS
from service.db.session import CONNECTIONS
from tests.servers import Postgres
from tests.serving import Service, serving

AT_ONCE = 2 * CONNECTIONS + 10
SOON = 5.0


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    if request.param == "sqlite":
        with serving(home) as running:
            yield running
        return
    with Postgres(()) as postgres:
        postgres.execute("CREATE DATABASE matnas")
        with serving(home, database_url=f"{postgres.url}/matnas") as running:
            yield running


@pytest.mark.parametrize(
    ("method", "verb", "seen"),
    [("POST", "/cancel", False), ("POST", "/pause", False), ("PATCH", "", True)],
)
def test_all_are_answered(service: Service, method: str, verb: str, seen: bool) -> None:
    search_id = service.submit()
    url = f"{service.url}/searches/{search_id}"
    headers = {"If-Match": service.http.get(url).headers["etag"]} if seen else {}

    def decide(_: int) -> int:
        body = {"name": "another"} if method == "PATCH" else None
        return httpx.request(
            method, url + verb, json=body, headers=headers, timeout=25, trust_env=False
        ).status_code

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(decide, range(AT_ONCE)))
    if seen:  # the first has changed what the others have seen
        assert answers.count(200) == 1
        assert answers.count(412) == AT_ONCE - 1
    else:
        assert set(answers) == {202}


def test_the_process_lives_while_all_wait_for_the_database(service: Service) -> None:
    if service.database.engine.dialect.name == "sqlite":
        pytest.skip("which locks no rows")
    search_id = service.submit()
    cancel = f"{service.url}/searches/{search_id}/cancel"
    with psycopg.connect(service.settings.database) as lock, ThreadPoolExecutor(AT_ONCE) as pool:
        lock.execute("SELECT 1 FROM searches WHERE id = %s FOR UPDATE", [search_id])
        waiting = [
            pool.submit(httpx.post, cancel, timeout=25, trust_env=False) for _ in range(AT_ONCE)
        ]
        until = time.monotonic() + 20
        while _busy(service) < CONNECTIONS - SPARE_CONNECTIONS:
            assert time.monotonic() < until, "not all have come to wait"
            time.sleep(0.05)
        assert httpx.get(f"{service.url}/healthz", timeout=SOON, trust_env=False).is_success
        lock.rollback()
        assert {one.result().status_code for one in waiting} == {202}


def _busy(service: Service) -> int:
    with psycopg.connect(service.settings.database, autocommit=True) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        ).fetchone()
    assert found is not None
    return int(found[0])
