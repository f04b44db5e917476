"""What Prometheus reads: requests as this process has seen them, the rest as the rows have it."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib.metadata import version
from threading import Lock
from time import monotonic
from typing import Any, final

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope

from service import jobs
from service.db.session import Database, clock
from service.settings import Settings

# Trials that have ended are counted at most this often: there may be millions. What is live and
# what is queued is counted at every look.
RECOUNT_SECONDS = 60.0
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
# Status polls take milliseconds; what takes seconds is a large upload or our fault.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@final
class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("matnas", "Which version runs.", registry=self.registry).info(
            {"version": version("matnas")}
        )
        self._requests = Counter(
            "matnas_http_requests",
            "Requests answered by this process.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "matnas_http_request_seconds",
            "Until an answer begins: an event stream's end is not waited for.",
            ["method", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request, by its route and never by its address: of those there is no end."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = _route(scope)
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def watch(self, rows: Database, settings: Settings) -> None:
        """Count the rows, too."""
        fresh = timedelta(seconds=settings.fresh_seconds)
        self.registry.register(Rows(rows, fresh=fresh))


@final
class Rows(Collector):
    """Counts rows whenever it is asked, so that all processes say the same."""

    def __init__(self, rows: Database, *, fresh: timedelta) -> None:
        self._rows = rows
        self._fresh = fresh
        self._ended: Mapping[str, int] = {}
        self._counted = -RECOUNT_SECONDS
        self._lock = Lock()

    def describe(self) -> Iterator[Metric]:
        """Give names to the registry without asking the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Count; if the database does not answer, that is what is told."""
        up = GaugeMetricFamily("matnas_database_up", "Whether the database answers.")
        try:
            with self._rows.read() as session:
                found = jobs.census(session, now=clock(session), fresh=self._fresh)
                ended = self._ended_trials(session)
        except SQLAlchemyError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield _by("matnas_searches", "Searches.", "state", found.searches)
        yield _by("matnas_trials", "Trials.", "state", {**found.live_trials, **ended})
        yield _one("matnas_queue_trials", "Trials that wait for a worker only.", found.queued)
        yield _one(
            "matnas_queue_oldest_seconds",
            "Since when the first of them waits.",
            found.oldest_seconds,
        )
        yield _one("matnas_workers", "Workers heard of lately.", found.workers)
        counted = found.counters
        lost = CounterMetricFamily(
            "matnas_lost_trials",
            "Trials whose process was gone: by its worker's word, or as their lease ran out.",
            labels=["noticed_by"],
        )
        lost.add_metric(["worker"], counted.get("lost_processes", 0))
        lost.add_metric(["reaper"], counted.get("lost_leases", 0))
        yield lost
        retries = CounterMetricFamily("matnas_retries", "Lost trials that were put back.")
        retries.add_metric([], counted.get("retries", 0))
        yield retries
        sent = CounterMetricFamily(
            "matnas_webhook_attempts", "Messages sent to webhooks.", labels=["outcome"]
        )
        sent.add_metric(["delivered"], counted.get("webhooks_delivered", 0))
        sent.add_metric(["failed"], counted.get("webhooks_failed", 0))
        yield sent
        waiting = "Messages that wait to be sent, for the first time or again."
        yield _one("matnas_webhook_deliveries_waiting", waiting, found.deliveries)
        disabled = "Webhooks that nothing is sent to."
        yield _one("matnas_webhooks_disabled", disabled, found.disabled_webhooks)

    def _ended_trials(self, session: Any) -> Mapping[str, int]:
        with self._lock:
            if monotonic() - self._counted >= RECOUNT_SECONDS:
                self._ended = jobs.ended_trials(session)
                self._counted = monotonic()
            return self._ended


def _one(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _by(name: str, words: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _route(scope: Scope) -> str:
    """The template that a request has matched, the same under /v1 and without it."""
    if route := getattr(scope.get("route"), "path", ""):
        return str(route)
    return "/static" if scope["path"].startswith("/static/") else "(none)"
