"""Where whole files are kept under names: a folder, or an object store; the same promises of both.

What is kept is durable when `keep` returns, and is there wholly or not at all.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final
from urllib.parse import unquote, urlsplit

from models.durable import replace_file, sync, wants_room


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is kept: `address` is its name, `modified` when it was kept last."""

    address: str
    bytes: int
    modified: datetime


class StorageAway(OSError):
    """The storage did not answer, or takes nobody in: what was asked of it can be asked again."""


class Storage(ABC):
    """The port. Names are relative, with slashes; no method follows one out of the storage.

    Where the storage is elsewhere, any method may raise StorageAway.
    """

    @abstractmethod
    def holds(self, folder: Path) -> bool:
        """Whether what is written into a local folder is thereby in the storage."""

    @abstractmethod
    def address(self, key: str, sha256: str) -> str:
        """Return under which name the file that is called `key` and has this content is kept."""

    @abstractmethod
    def keep(self, local: Path, address: str) -> None:
        """Keep a copy of a local file, in the place of what had the name."""

    @abstractmethod
    def fetch(self, address: str, local: Path) -> None:
        """Make a local copy; FileNotFoundError if nothing has the name."""

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Entry]:
        """List what is kept below a name, in no order."""

    @abstractmethod
    def remove(self, address: str) -> None:
        """Forget what has the name, or nothing."""


@final
class FolderStorage(Storage):
    """Files below a folder; those that are there already are kept where they are."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def holds(self, folder: Path) -> bool:
        """Whether it is below the root."""
        return self._root in (folder.resolve(), *folder.resolve().parents)

    def address(self, key: str, sha256: str) -> str:
        """The key: whoever works in the folder has the file under its name."""
        del sha256
        return key

    def keep(self, local: Path, address: str) -> None:
        """Copy, if it is elsewhere, and wait for the disk."""
        path = self._path(address)
        if path.exists() and path.samefile(local):
            sync(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda temporary: _copy(local, temporary))
        sync(path.parent)

    def fetch(self, address: str, local: Path) -> None:
        """Copy, unless it is the same file."""
        path = self._path(address)
        if not path.is_file():
            raise FileNotFoundError(address)
        if not (local.exists() and path.samefile(local)):
            local.parent.mkdir(parents=True, exist_ok=True)
            replace_file(local, lambda temporary: _copy(path, temporary))

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Walk the folder."""
        for path in self._path(prefix).rglob("*"):
            with suppress(FileNotFoundError):  # others come and go meanwhile
                if path.is_file():
                    found = path.stat()
                    yield Entry(
                        path.relative_to(self._root).as_posix(),
                        found.st_size,
                        datetime.fromtimestamp(found.st_mtime, UTC),
                    )

    def remove(self, address: str) -> None:
        """Unlink, and the folders that are empty then."""
        path = self._path(address)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            while (path := path.parent) != self._root:
                path.rmdir()

    def _path(self, address: str) -> Path:
        path = (self._root / address).resolve()
        if path == self._root or self._root not in path.parents:
            raise FileNotFoundError(address)
        return path


@final
class FsspecStorage(Storage):
    """Objects below a URL of fsspec's, whose stores write each object wholly or not at all."""

    def __init__(self, url: str) -> None:
        import fsspec  # noqa: PLC0415  (comes with the extra s3)

        # What others write must be seen: a listing is asked for each time.
        filesystem, root = fsspec.url_to_fs(url, use_listings_cache=False)
        self._files: Any = filesystem
        self._root = str(root).rstrip("/")

    def holds(self, folder: Path) -> bool:
        """Never: an object store is elsewhere."""
        del folder
        return False

    def address(self, key: str, sha256: str) -> str:
        """The key and the content: the list of an attempt's files never names one that changes."""
        return f"{key}~{sha256[:16]}"

    def keep(self, local: Path, address: str) -> None:
        """Upload."""
        with self._asked():
            self._files.put_file(str(local), self._path(address))

    def fetch(self, address: str, local: Path) -> None:
        """Download under another name, then rename."""
        with self._asked():
            source = self._files.open(self._path(address), "rb")
        with source:
            # Not before: where nothing has the name, a folder would pass for an attempt's files.
            local.parent.mkdir(parents=True, exist_ok=True)
            replace_file(local, lambda temporary: self._download(source, temporary))

    def entries(self, prefix: str) -> Iterator[Entry]:
        """List the objects."""
        with self._asked():
            found = self._files.find(self._path(prefix), detail=True)
        for path, known in found.items():
            yield Entry(
                str(path).removeprefix(f"{self._root}/"), int(known["size"]), _modified(known)
            )

    def remove(self, address: str) -> None:
        """Delete the object."""
        with suppress(FileNotFoundError), self._asked():
            self._files.rm_file(self._path(address))

    def _download(self, source: Any, target: Path) -> None:
        with target.open("wb") as file:
            while chunk := self._read(source):
                file.write(chunk)

    def _read(self, source: Any) -> bytes:
        with self._asked():
            return bytes(source.read(1024 * 1024))

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Whatever the store's library raises means that it is away, unless it says more."""
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) or wants_room(error):
                raise
            why = f"{type(error).__name__}: {error}"
            raise StorageAway(f"the store of files is away ({why})") from error

    def _path(self, address: str) -> str:
        if ".." in address.split("/"):
            raise FileNotFoundError(address)
        return f"{self._root}/{address}"


def make_storage(url: str, home: Path) -> Storage:
    """Return the storage that `url` names: the home's own folder unless it names another place."""
    if not url:
        return FolderStorage(home)
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return FolderStorage(Path(unquote(parts.path)))
    return FsspecStorage(url)


def _modified(known: dict[str, Any]) -> datetime:
    # Stores have names of their own for it; one that says nothing has only new files.
    for name in ("LastModified", "last_modified", "updated", "mtime", "created"):
        match known.get(name):
            case datetime() as moment:
                return moment.astimezone(UTC)
            case float() | int() as seconds:
                return datetime.fromtimestamp(seconds, UTC)
            case _:
                continue
    return datetime.now(UTC)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    sync(target)
