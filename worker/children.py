"""The child processes of a worker: one for each trial that it has claimed, watched to its end."""

import logging
import os
import signal
from datetime import datetime, timedelta
from math import inf
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from typing import final

from sqlalchemy.exc import DBAPIError

from models.durable import wants_room
from service import jobs, logs, tracing
from service.artifacts import ArtifactStore
from service.db.session import Database, clock
from service.lifecycle import Reason
from service.settings import Settings
from worker.identity import worker_name
from worker.launching import Launcher, Order, TrialProcess, make_launcher
from worker.parent import AWAY, LEFT, NO_ROOM, facts
from worker.progress import in_transaction
from worker.recovery import send_hints

# How much of a dead trial's log is repeated in the worker's.
TAIL_BYTES = 4000
# How soon a client's wish is heard, and how long a trial may take to stop by itself. One that needs
# longer is at something that leaves no checkpoint: nothing is lost if its process is ended, but in
# an object store what was not yet sent there.
WATCH_SECONDS = 0.4
GRACE_SECONDS = 0.8
LONG_GRACE_SECONDS = 15.0
# A process that has not begun after so long never will.
START_SECONDS = 600.0
# How long a process may go on once its attempt has ended or been replaced: its traces are sent.
OVER_SECONDS = 15.0

log = logging.getLogger(__name__)


@final
class Children:
    """Claims trials, runs each in a process of its own, and speaks for those that die."""

    def __init__(
        self, settings: Settings, database: Database, launcher: Launcher | None = None
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = ArtifactStore(settings.home)
        self._owner = worker_name(settings.home)
        self._launcher = launcher or make_launcher(settings)
        self._running: set[TrialProcess] = set()
        self._lock = Lock()
        self._stopping = Event()

    def prepare(self) -> None:
        """Get ready for the first trial, which need not wait for torch then."""
        self._launcher.prepare()

    def close(self) -> None:
        """Leave no process behind, once all trials have ended."""
        self._launcher.close()

    def run(self, trial_id: str) -> None:
        """Run a trial to its end, unless another has it, and hint at what may start after it."""
        claim = None if self._stopping.is_set() else self._claim(trial_id)
        if claim is None:
            return
        known = facts(claim)
        # In the trace of the request that asked for the search, whoever sent this hint.
        with logs.about(**known), tracing.span("matnas.trial", parent=claim.trace, facts=known):
            self._attempt(trial_id, claim)
        send_hints(self._settings, self._database)

    def _attempt(self, trial_id: str, claim: jobs.Claim) -> None:
        log.info("trial %s begins, attempt %d", trial_id, claim.attempt)
        folder = self._store.attempt(claim.search_id, claim.planned.number, claim.attempt)
        logged = folder.with_suffix(".log")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            code = self._wait(claim, logged)
        except OSError as error:
            # No room for a log, or no process to be had: the trial must not wait for its lease.
            log.warning("trial %s could not be started: %s", trial_id, error)
            code = NO_ROOM if wants_room(error) else os.EX_OSERR
        self._release(claim, code, logged)

    def stop(self) -> None:
        """Claim nothing more, and ask every child to leave a checkpoint and its trial."""
        self._stopping.set()
        with self._lock:
            for process in self._running:
                process.send(signal.SIGTERM)

    def _claim(self, trial_id: str) -> jobs.Claim | None:
        with self._database.write() as session:
            now = clock(session)
            return jobs.claim(
                session,
                jobs.preferred(session, trial_id, now=now),
                owner=self._owner,
                now=now,
                lease=timedelta(seconds=self._settings.lease_seconds),
            )

    def _wait(self, claim: jobs.Claim, logged: Path) -> int:
        order = Order(claim.trial_id, claim.attempt, tracing.here() or "")
        with logged.open("wb") as output:
            process = self._launcher.launch(order, output)
        with self._lock:
            self._running.add(process)
            if self._stopping.is_set():
                process.send(signal.SIGTERM)
        try:
            return self._watch(process, claim)
        finally:
            with self._lock:
                self._running.discard(process)

    def _watch(self, process: TrialProcess, claim: jobs.Claim) -> int:
        """Wait for the end of a child, and bring it about if that is the client's wish.

        It may take long to start: until it keeps its claim by itself, that is done here. One that
        never does is lost; one that hangs later, and is replaced, must not keep this slot.
        """
        lease = timedelta(seconds=self._settings.lease_seconds)
        began = due = monotonic()
        until: datetime | None = claim.lease_until
        last = inf  # when it must have ended
        while (code := process.wait(_next_look(last - monotonic()))) is None:
            now, wish = monotonic(), self._wish(claim)
            if wish == "stop" and last == inf:
                process.send(signal.SIGTERM)
                last = now + (LONG_GRACE_SECONDS if self._settings.artifacts_url else GRACE_SECONDS)
            elif wish == "over" and last == inf:
                last = now + OVER_SECONDS
            unborn = self._stopping.is_set() and not process.begun
            if unborn or wish == "end" or now >= last:
                last = min(last, now)
                process.send(signal.SIGKILL)
            if until is not None and now - due > lease.total_seconds() / 4:
                due = now
                until = self._hold(claim, until, lease)
                if until is not None and now - began > START_SECONDS:
                    log.warning("trial %s never began, and is ended", claim.trial_id)
                    process.send(signal.SIGKILL)
        # A child that was ended for the client is not one that was lost.
        return LEFT if code < 0 and last < inf else code

    def _wish(self, claim: jobs.Claim) -> jobs.Wish:
        try:
            with self._database.read() as session:
                return jobs.wish(session, claim)
        except DBAPIError as error:
            log.warning("the database did not answer, and is asked again: %s", error.orig)
            return "go on"

    def _hold(self, claim: jobs.Claim, until: datetime, lease: timedelta) -> datetime | None:
        try:
            with self._database.write() as session:
                return jobs.hold(session, claim, until=until, now=clock(session), lease=lease)
        except DBAPIError as error:
            log.warning("the database did not answer, the claim is kept later: %s", error.orig)
            return until

    def _release(self, claim: jobs.Claim, code: int, logged: Path) -> None:
        reason, sentence = self._why(code)
        left = in_transaction(
            self._database,
            lambda session: jobs.release(
                session,
                claim.trial_id,
                attempt=claim.attempt,
                reason=reason,
                sentence=sentence,
                now=clock(session),
                max_attempts=self._settings.max_attempts,
            ),
            seconds=self._settings.lease_seconds,
        )
        log.info("trial %s ended, exit status %d", claim.trial_id, code)
        if code not in (0, LEFT) or (left and code == 0):
            log.warning("the end of %s:\n%s", logged, _tail(logged))

    def _why(self, code: int) -> tuple[Reason, str]:
        if code == NO_ROOM:
            return "disk_full", "there is no room for its files; it is tried again"
        if code == AWAY:
            return "store_away", "the store of its files did not answer; it is tried again"
        if self._stopping.is_set():
            return "worker_stopped", "its worker was stopped"
        if code == LEFT:
            return "user_pause", "the search was paused"
        return "worker_lost", f"its process ended with {code}"


def _next_look(patience: float) -> float:
    return min(WATCH_SECONDS, patience) if patience > 0 else WATCH_SECONDS


def _tail(path: Path) -> str:
    try:
        text = path.read_bytes()[-TAIL_BYTES:]
    except FileNotFoundError:
        return "it was never written"
    return text.decode(errors="replace")
