"""Webhooks are delivered by threads of every worker, each of which takes one endpoint at a time."""

import logging
import random
import signal
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread
from typing import final

from sqlalchemy.exc import DBAPIError

from service import jobs
from service.db.session import Database, clock
from service.outgoing import send
from service.settings import Settings

# An endpoint that is slow to answer holds one of these up, not the others.
THREADS = 3
POLL_SECONDS = 1.0
FORGET_EVERY = 3600  # polls that found nothing: about an hour

log = logging.getLogger(__name__)


@final
class Deliveries:
    """Sends what the outbox holds; whatever happens meanwhile, the rows know what is left."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._stop = Event()
        # A thread that waits for a slow endpoint keeps no worker from ending.
        self._threads = [
            Thread(target=self._run, name=f"deliveries {index}", daemon=True)
            for index in range(THREADS)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more; what is under way and not settled is sent again by another."""
        self._stop.set()

    def _run(self) -> None:
        idle = 0
        while not self._stop.is_set():
            try:
                found = deliver(self._settings, self._database, stopped=self._stop.is_set)
                idle = 0 if found else idle + 1
                if idle % FORGET_EVERY == 1:
                    self._forget()
            except DBAPIError as error:
                log.warning("the database did not answer, webhooks wait: %s", error.orig)
                found = False
            except Exception:
                log.exception("webhooks cannot be delivered, and the worker ends")
                signal.raise_signal(signal.SIGTERM)
                raise
            if not found:
                self._stop.wait(POLL_SECONDS)

    def _forget(self) -> None:
        with self._database.write() as session:
            jobs.forget_deliveries(session, now=clock(session))


def deliver(
    settings: Settings, database: Database, *, stopped: Callable[[], bool] = lambda: False
) -> bool:
    """Send what is due to one endpoint, until one message fails; False if nothing was due."""
    with database.read() as session:
        if not jobs.any_due(session, now=clock(session)):
            return False
    # Longer than one message may take: a name that is looked up has its own time limit.
    lease = timedelta(seconds=settings.webhook_seconds + 60)
    with database.write() as session:
        batch = jobs.take_batch(session, now=clock(session), lease=lease)
    if batch is None:
        return False
    for event_id, message in batch.messages:
        with database.read() as session:
            now = clock(session)
        outcome = send(
            message,
            now=now,
            seconds=settings.webhook_seconds,
            allowed=settings.webhook_networks,
        )
        log.info(
            "event %d for webhook %s: %s",
            event_id,
            batch.webhook_id,
            outcome.sentence or f"delivered, {outcome.status}",
        )
        with database.write() as session:
            go_on = jobs.settle(
                session,
                batch,
                event_id,
                outcome,
                patience=patience(settings),
                now=clock(session),
                lease=lease,
                jitter=random.random(),  # noqa: S311  (so that not all try again at once)
            )
        if stopped() or not go_on:
            break
    else:
        go_on = True
    if go_on:
        with database.write() as session:
            jobs.leave(session, batch)
    return True


def patience(settings: Settings) -> jobs.Patience:
    """When an endpoint is tried again, as the installation wants it."""
    return jobs.Patience(
        attempts=settings.webhook_attempts,
        pause=timedelta(seconds=settings.webhook_retry_seconds),
        failures=settings.webhook_failures,
    )
