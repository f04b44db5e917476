"""Lost and unsent work goes back to the queue: a thread of every worker sees to it."""

import logging
import signal
from datetime import timedelta
from threading import Event, Thread
from typing import final

from sqlalchemy.exc import DBAPIError

from service import jobs
from service.db.session import Database, clock
from service.queue import send_after_commit
from service.settings import Settings
from worker.identity import is_gone, worker_name

log = logging.getLogger(__name__)


def send_hints(settings: Settings, database: Database) -> None:
    """Send a message for each trial that may start and has had none lately."""
    with database.write() as session:
        due = jobs.hints_due(
            session,
            now=clock(session),
            again_after=timedelta(seconds=settings.hint_seconds),
        )
        send_after_commit(session, due)


def sweep(settings: Settings, database: Database) -> None:
    """Put back what dead workers hold, stop what has no quota left, hint at whatever may start."""
    with database.write() as session:
        now, home = clock(session), settings.home
        jobs.note_worker(session, worker_name(home), now=now)
        gone = {name for name in jobs.owners(session) if is_gone(name, home)}
        jobs.recover(session, now=now, max_attempts=settings.max_attempts, gone=gone)
        jobs.stop_spent(session, settings.quota, now=now)
    send_hints(settings, database)


@final
class Recovery:
    """Sweeps at once and then every few seconds, whatever happens to the database meanwhile."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._stop = Event()
        self._thread = Thread(target=self._run, name="recovery", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Sweep no more; does not wait, for it is called from a signal handler."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._settings.heartbeat is not None:
                # Also while the database is away: to start this worker again would not help.
                self._settings.heartbeat.touch()
            try:
                sweep(self._settings, self._database)
            except DBAPIError as error:
                log.warning("the database did not answer, the sweep is repeated: %s", error.orig)
            except Exception:
                # A worker that recovers nothing must not look alive: its supervisor restarts it.
                log.exception("the sweep failed, and the worker ends")
                signal.raise_signal(signal.SIGTERM)
                raise
            self._stop.wait(self._settings.reap_seconds)
