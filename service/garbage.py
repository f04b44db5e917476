"""Garbage collection: what nothing refers to is removed when it is old enough to be sure of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar, final

from service import jobs
from service.artifacts import ArtifactStore
from service.db.session import Database, clock
from service.settings import Settings
from service.storage import Entry, FolderStorage, Storage

# Whoever is still writing a file does not take a day for it.
LEFT_OVER = timedelta(days=1)
BATCH = 500

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing that can go, and why."""

    name: str
    bytes: int
    why: str


@final
class Collector:
    """One round; with `dry_run` it only says what it would remove."""

    def __init__(
        self, settings: Settings, database: Database, store: ArtifactStore, *, dry_run: bool
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._dry_run = dry_run
        with database.read() as session:
            self._now = clock(session)

    def run(self) -> Iterator[Garbage]:
        """Remove, and tell of each thing that is gone."""
        yield from self._answers()
        yield from self._uploads()
        yield from self._attempts(self._store.storage)
        if not self._store.is_local:
            scratch = FolderStorage(self._store.home)
            yield from self._attempts(scratch)
            yield from self._copies(scratch)
        yield from self._cache()

    def _answers(self) -> Iterator[Garbage]:
        before = self._now - timedelta(hours=self._settings.keep_answers_hours)
        with self._database.write() as session:
            count = jobs.forget_answers(session, before=before, dry_run=self._dry_run)
        if count:
            yield Garbage(f"{count} answers", 0, "their Idempotency-Keys have expired")

    def _uploads(self) -> Iterator[Garbage]:
        before = self._now - timedelta(days=self._settings.keep_uploads_days)
        with self._database.write() as session:
            forget = jobs.unused_uploads if self._dry_run else jobs.forget_uploads
            forgotten = set(forget(session, before=before))
        for some in _batches(self._store.storage.entries("artifacts")):
            ids = {entry.address: entry.address.rpartition("/")[2] for entry in some}
            with self._database.read() as session:
                known = jobs.known_uploads(session, ids.values()) - forgotten
            # One that was sent again has a new file, and soon a row.
            strays = [one for one in some if ids[one.address] not in known]
            old = [one for one in strays if one.modified < min(before, self._now - LEFT_OVER)]
            yield from self._remove(self._store.storage, old, "no search names this upload")

    def _attempts(self, storage: Storage) -> Iterator[Garbage]:
        for some in _batches(_by_search(storage)):
            with self._database.read() as session:
                rows = jobs.trial_files(session, [name for name, _ in some])
            for name, found in some:
                if name not in rows:
                    yield from self._remove(storage, self._old(found), "its search was deleted")
                    continue
                for entry in found:
                    if why := self._why(entry, rows[name]):
                        yield from self._remove(storage, self._old([entry]), why)

    def _why(self, entry: Entry, trials: Mapping[int, jobs.TrialFiles]) -> str:
        _, _, _, number, attempt, *inside = entry.address.split("/")
        if attempt.endswith(".arriving") or any(part.startswith(".") for part in inside):
            return "whoever was writing it is gone"
        trial = trials.get(int(number))
        if not inside or trial is None or not trial.ended:
            return ""  # the log of an attempt says later why it ended
        return (
            "" if attempt == f"attempt-{trial.attempt}" else "another attempt has ended the trial"
        )

    def _copies(self, scratch: FolderStorage) -> Iterator[Garbage]:
        """What was fetched from the store can be fetched again."""
        before = self._now - timedelta(days=self._settings.keep_cache_days)
        uploads = [one for one in scratch.entries("artifacts") if one.modified < before]
        yield from self._remove(scratch, uploads, "a copy of what the store has")
        for some in _batches(_by_search(scratch)):
            found = dict(some)
            with self._database.read() as session:
                ended = jobs.ended_before(session, found.keys(), before=before)
            for name in sorted(ended):
                kept = [one for one in found[name] if not one.address.endswith(".log")]
                yield from self._remove(scratch, kept, "a copy of what the store has")

    def _cache(self) -> Iterator[Garbage]:
        before = self._now - timedelta(days=self._settings.keep_cache_days)
        storage = FolderStorage(self._store.home)
        for entry in self._store.cache.glob("*/*"):
            files = [path for path in [entry, *entry.rglob("*")] if path.is_file()]
            if files and max(map(_used, files)) < before:
                found = [
                    Entry(
                        path.relative_to(self._store.home).as_posix(), path.stat().st_size, before
                    )
                    for path in files
                ]
                yield from self._remove(storage, found, "it was not used for a long time")

    def _old(self, entries: Iterable[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry.modified < self._now - LEFT_OVER]

    def _remove(self, storage: Storage, entries: Iterable[Entry], why: str) -> Iterator[Garbage]:
        for entry in entries:
            if not self._dry_run:
                storage.remove(entry.address)
            yield Garbage(entry.address, entry.bytes, why)


def _by_search(storage: Storage) -> Iterator[tuple[str, list[Entry]]]:
    entries = sorted(storage.entries("searches"), key=lambda entry: entry.address)
    for name, found in groupby(entries, lambda entry: entry.address.split("/")[1]):
        yield name, list(found)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while some := list(islice(iterator, BATCH)):
        yield some


def _used(path: Path) -> datetime:
    found = path.stat()
    return datetime.fromtimestamp(max(found.st_atime, found.st_mtime), UTC)
