"""A trial's progress, bound to its row: a thread writes it, renews the lease and learns to stop."""

import logging
from collections.abc import Callable
from datetime import timedelta
from math import inf
from threading import Event, Lock, Thread
from time import monotonic, sleep
from types import TracebackType
from typing import Self, TypeVar, final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from search.progress import Update
from service import jobs
from service.db.session import Database, clock

# Points are written this often, and a client's wish to stop is learnt as fast.
BEAT_SECONDS = 1.0

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@final
class RowProgress:
    """Search's protocol; while it is open, the claim is renewed even if nothing is reported."""

    def __init__(self, database: Database, claim: jobs.Claim, *, lease: timedelta) -> None:
        self._database = database
        self._claim = claim
        self._lease = lease
        self._stage: jobs.Stage | None = None
        self._points: list[jobs.Point] = []
        self._lock = Lock()
        self._beating = Lock()
        self._stop = Event()
        self._leaving = Event()
        self._closed = Event()
        # The first beat renews: the claim was made before this process started.
        self._renewed = -inf
        self._thread = Thread(target=self._run, name="progress", daemon=True)

    def report(self, update: Update) -> None:
        """Take note; the thread writes it with the next beat."""
        points = [jobs.Point(name, update.done, value) for name, value in update.metrics.items()]
        with self._lock:
            self._stage = jobs.Stage(update.phase, update.done, update.total, update.unit)
            self._points += points

    def should_stop(self) -> bool:
        """Whether the search is cancelled or paused, the worker stopped, or the claim lost."""
        return self._stop.is_set()

    @property
    def leaving(self) -> bool:
        """Whether the trial is to go on later: the worker stops, or the search pauses."""
        return self._leaving.is_set()

    def leave(self) -> None:
        """Let the trial stop here and go on elsewhere or later; called from a signal handler."""
        self._leaving.set()
        self._stop.set()

    def flush(self) -> None:
        """Write all that was reported so far, even if the database takes a while to answer."""
        patiently(self._beat, seconds=self._lease.total_seconds())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        interval = min(BEAT_SECONDS, self._lease.total_seconds() / 4)
        while True:
            try:
                self._beat()
            except DBAPIError as error:
                log.warning("the database did not answer, the beat is repeated: %s", error.orig)
            if self._closed.wait(interval):
                return

    def _beat(self) -> None:
        # One at a time: whoever flushes must not overtake points that are still being written.
        with self._beating:
            self._write_news()

    def _write_news(self) -> None:
        with self._lock:
            stage, points = self._stage, self._points
            self._stage, self._points = None, []
        began = monotonic()
        due = began - self._renewed >= self._lease.total_seconds() / 3
        try:
            renewal = self._write(stage, points, renew=due)
        except DBAPIError:
            with self._lock:
                self._stage, self._points = self._stage or stage, points + self._points
            raise
        if due:
            self._renewed = began
        if renewal.pause:
            self.leave()
        if renewal.stop:
            self._stop.set()

    def _write(
        self, stage: jobs.Stage | None, points: list[jobs.Point], *, renew: bool
    ) -> jobs.Renewal:
        if stage is None and not points and not renew:
            with self._database.read() as session:
                return jobs.record(session, self._claim, stage=None, points=())
        with self._database.write() as session:
            if renew:
                jobs.renew(session, self._claim, now=clock(session), lease=self._lease)
            return jobs.record(session, self._claim, stage=stage, points=points)


def patiently(work: Callable[[], Result], *, seconds: float) -> Result:
    """Do what must reach the database, trying again for a while if it does not answer."""
    until = monotonic() + seconds
    while True:
        try:
            return work()
        except DBAPIError as error:
            if monotonic() > until:
                raise
            log.warning("the database did not answer, trying again: %s", error.orig)
            sleep(0.5)


def in_transaction(
    database: Database, work: Callable[[Session], Result], *, seconds: float
) -> Result:
    """Do `work` in a transaction of its own, with patience."""

    def once() -> Result:
        with database.write() as session:
            return work(session)

    return patiently(once, seconds=seconds)
