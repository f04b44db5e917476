"""Every worker removes now and then what nothing refers to: its own files, and everybody's."""

import logging
from threading import Event, Thread
from typing import final

from sqlalchemy.exc import DBAPIError

from service.artifacts import make_store
from service.db.session import Database
from service.garbage import Collector
from service.settings import Settings

log = logging.getLogger(__name__)


@final
class Housekeeping:
    """A thread that collects garbage, the first time after one whole interval."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._stop = Event()
        self._thread = Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further round; does not wait, for it is called from a signal handler."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.gc_seconds):
            try:
                collect(self._settings, self._database)
            except (DBAPIError, OSError) as error:
                log.warning("the garbage was not collected to the end: %s", error)
            except Exception:
                # Trials go on; the next round may come further.
                log.exception("the garbage was not collected to the end")


def collect(settings: Settings, database: Database) -> int:
    """Remove what nothing refers to; give how much of it there was, in bytes."""
    collector = Collector(settings, database, make_store(settings), dry_run=False)
    count = size = 0
    for garbage in collector.run():
        count, size = count + 1, size + garbage.bytes
    if count:
        log.info("%d things that nothing referred to were removed, %d bytes", count, size)
    return size
