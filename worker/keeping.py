"""What a trial has written is kept while it goes on, where its folder alone keeps nothing."""

import logging
from threading import Event, Thread
from types import TracebackType
from typing import Self, final

from service import jobs
from service.artifacts import ArtifactStore

# How much of a training is repeated, at the most, if another machine has to go on with it.
KEEP_SECONDS = 5.0

log = logging.getLogger(__name__)


@final
class Keeping:
    """Saves an attempt's folder to the store every few seconds, until it is closed."""

    def __init__(self, store: ArtifactStore, claim: jobs.Claim) -> None:
        self._store = store
        self._attempt = (claim.search_id, claim.planned.number, claim.attempt)
        self._closed = Event()
        self._thread = Thread(target=self._run, name="keeping", daemon=True)

    def __enter__(self) -> Self:
        if not self._store.is_local:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if not self._store.is_local:
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(KEEP_SECONDS):
            try:
                self._store.save(*self._attempt)
            except OSError as error:
                # The next time may be better; the end of the trial insists on it.
                log.warning("the store did not take the trial's files: %s", error)
