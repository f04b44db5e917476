"""What Prometheus reads: what was asked of this process, and what the rows say whoever is asked."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import jobs
from service.api import metrics
from service.db.session import Database
from tests.serving import Service, begin, play, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "RECOUNT_SECONDS", 0.0)
        with serving(tmp_path_factory.mktemp("home")) as running:
            yield running


@final
class Scraped:
    """One look, by Prometheus's own reader."""

    def __init__(self, service: Service) -> None:
        answer = service.http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        self._samples = [
            sample
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        found = [one.value for one in self._samples if (one.name, one.labels) == (name, labels)]
        assert len(found) < 2
        return found[0] if found else 0.0

    def labels(self, name: str) -> list[dict[str, str]]:
        return [one.labels for one in self._samples if one.name == name]


def test_requests_are_counted_by_route_and_never_by_address(service: Service) -> None:
    before = Scraped(service)
    for path in ("/searches/srch_1", "/v1/searches/srch_2", "/nothing/here", "/static/style.css"):
        service.http.get(path)
    service.http.request("BREW", "/searches")
    after = Scraped(service)

    def more(method: str, route: str, status: str) -> float:
        labels = {"method": method, "route": route, "status": status}
        name = "matnas_http_requests_total"
        return after.value(name, **labels) - before.value(name, **labels)

    assert more("GET", "/searches/{search_id}", "404") == 2
    assert more("GET", "(none)", "404") == 1
    assert more("GET", "/static", "200") == 1
    assert more("GET", "/metrics", "200") == 1
    assert {one["method"] for one in after.labels("matnas_http_requests_total")} == {"GET", "other"}
    count = "matnas_http_request_seconds_count"
    assert after.value(count, method="GET", route="/searches/{search_id}") >= 2


def test_searches_and_trials_are_counted_by_state(service: Service) -> None:
    before = Scraped(service)
    search_id = service.submit()
    play(service, search_id)
    service.submit()
    after = Scraped(service)

    def more(kind: str, state: str) -> float:
        return after.value(f"matnas_{kind}", state=state) - before.value(
            f"matnas_{kind}", state=state
        )

    with service.database.read() as session:
        trials = len(jobs.list_trials(session, search_id, now=datetime.now(UTC)))
    assert more("searches", "SUCCEEDED") == more("searches", "QUEUED") == 1
    assert more("trials", "COMPLETE") == more("trials", "WAITING") == trials
    assert after.value("matnas_database_up") == 1


def test_the_queue_is_what_waits_for_nothing_but_a_worker(service: Service) -> None:
    before = Scraped(service)
    search_id = service.submit()
    after = Scraped(service)
    # Of the new search only the reference may begin.
    assert after.value("matnas_queue_trials") - before.value("matnas_queue_trials") == 1
    assert after.value("matnas_queue_oldest_seconds") > 0
    begin(service, search_id, 0)
    assert Scraped(service).value("matnas_queue_trials") == before.value("matnas_queue_trials")


def test_lost_trials_and_retries_are_counted_for_good(service: Service) -> None:
    search_id = service.submit()
    before = Scraped(service)
    now = datetime.now(UTC)
    claim = begin(service, search_id, 0)
    with service.database.write() as session:
        jobs.recover(session, now=now + timedelta(minutes=5), max_attempts=3)
    claim = begin(service, search_id, 0)
    with service.database.write() as session:
        jobs.release(
            session,
            claim.trial_id,
            attempt=claim.attempt,
            reason="worker_lost",
            sentence="",
            now=now,
            max_attempts=2,
        )
    after = Scraped(service)
    name = "matnas_lost_trials_total"
    by_reaper, by_worker = (
        after.value(name, noticed_by=who) - before.value(name, noticed_by=who)
        for who in ("reaper", "worker")
    )
    assert by_worker == 1
    assert by_reaper >= 1  # other tests' trials are as late as this one
    # The second time, it was given up.
    retries = "matnas_retries_total"
    assert after.value(retries) - before.value(retries) == by_reaper


def test_a_worker_counts_while_it_is_heard_of(service: Service) -> None:
    now = datetime.now(UTC)
    with service.database.write() as session:
        jobs.note_worker(session, "fresh", now=now)
        jobs.note_worker(session, "silent", now=now - timedelta(hours=1))
    assert Scraped(service).value("matnas_workers") == 1


def test_a_database_that_does_not_answer_is_told_as_such() -> None:
    away = Database("postgresql://matnas@127.0.0.1:1/matnas")
    (up,) = metrics.Rows(away, fresh=timedelta(seconds=1)).collect()
    assert [(sample.name, sample.value) for sample in up.samples] == [("matnas_database_up", 0)]
    away.dispose()
