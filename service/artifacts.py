"""Files: uploads, which are checked before they are kept, and the folders of attempts."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, final
from uuid import uuid4

from safetensors import SafetensorError, safe_open

from models.durable import replace_file
from service.errors import ArtifactDamaged, ArtifactNotFound, ArtifactRefused, TooLarge
from service.jobs.views import ArtifactView
from service.settings import Settings
from service.storage import FolderStorage, Storage, make_storage

# A safetensors header that is longer than this describes no single matrix.
MAX_HEADER_BYTES = 1024 * 1024
# The id of an upload begins its checksum.
UPLOADED = re.compile(r"art_[0-9a-f]{32}")
# What an attempt has kept, beside it; it is written last.
LIST = "files.json"


@dataclass(frozen=True, slots=True)
class _Float:
    """How a float is stored, and the largest exponent that single precision can hold."""

    bytes: int
    bits: str
    exponent: int
    largest: int


_FLOATS = {
    "F64": _Float(8, "<u8", 0x7FF0_0000_0000_0000, 0x47D0_0000_0000_0000),
    "F32": _Float(4, "<u4", 0x7F80_0000, 0x7F00_0000),
    "F16": _Float(2, "<u2", 0x7C00, 0x7800),
    "BF16": _Float(2, "<u2", 0x7F80, 0x7F00),
}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an attempt: what it is called there, and what it must be when it is read."""

    name: str
    key: str
    address: str
    sha256: str
    bytes: int


@final
class ArtifactStore:
    """Everything the service and its workers keep as files, worked on below one local folder.

    Unless an object store is set, that folder is where they are kept, too.
    """

    def __init__(self, home: Path, storage: Storage | None = None) -> None:
        self.home = home.resolve()
        self.storage = storage or FolderStorage(home)

    @property
    def uploads(self) -> Path:
        """Where uploads lie, each under its id."""
        return self.home / "artifacts"

    @property
    def cache(self) -> Path:
        """What is kept between searches."""
        return self.home / "cache"

    @property
    def is_local(self) -> bool:
        """Whether what an attempt writes is kept as soon as it is written."""
        return self.storage.holds(self.home)

    def attempt(self, search_id: str, number: int, attempt: int) -> Path:
        """The folder that one attempt at one trial works in."""
        return self.home / attempt_key(search_id, number, attempt)

    def put(self, chunks: Iterable[bytes], *, max_bytes: int, now: datetime) -> ArtifactView:
        """Keep an upload that is one finite matrix; refuse any other and keep nothing of it."""
        self.uploads.mkdir(parents=True, exist_ok=True)
        arriving = self.uploads / f"arriving-{uuid4().hex}"
        try:
            with arriving.open("xb") as file:
                sha256, size = _receive(chunks, file, max_bytes)
            tensor = _checked(arriving, size)
            artifact_id = f"art_{sha256[:32]}"
            kept = arriving.replace(self.uploads / artifact_id)
            self.storage.keep(kept, f"artifacts/{artifact_id}")
        finally:
            with suppress(FileNotFoundError):
                arriving.unlink()
        return ArtifactView(
            id=artifact_id,
            kind="matrix",
            sha256=sha256,
            bytes=size,
            tensor=tensor.name,
            dtype=tensor.dtype,
            rows=tensor.shape[0],
            columns=tensor.shape[1],
            created_at=now,
        )

    def has_upload(self, artifact_id: str) -> bool:
        """Whether the file of an upload that was just put is still there."""
        return (self.uploads / artifact_id).exists()

    def remove_upload(self, artifact_id: str) -> None:
        """Remove the file of an upload; what is not there is removed already."""
        if not self.is_local:
            self.storage.remove(f"artifacts/{artifact_id}")
        (self.uploads / artifact_id).unlink(missing_ok=True)

    def upload(self, artifact_id: str) -> Path:
        """The file of an upload, as it was sent; ArtifactNotFound, or ArtifactDamaged."""
        # An id is one component: nothing a client sends leads to another folder.
        if not UPLOADED.fullmatch(artifact_id):
            raise ArtifactNotFound(artifact_id)
        key = f"artifacts/{artifact_id}"
        try:
            return self._whole(key, key, artifact_id.removeprefix("art_"))
        except FileNotFoundError as error:
            raise ArtifactNotFound(artifact_id) from error

    def save(self, search_id: str, number: int, attempt: int) -> None:
        """Keep what is in an attempt's folder, and the list of it with what each file must be."""
        folder = self.attempt(search_id, number, attempt)
        key = attempt_key(search_id, number, attempt)
        before = {file.address: file for file in _listed(folder)}
        files = [self._keep(path, folder, key, before) for path in _files_of(folder)]
        listed = [{name: getattr(file, name) for name in StoredFile.__slots__} for file in files]
        replace_file(folder / LIST, lambda path: path.write_text(json.dumps(listed)))
        self.storage.keep(folder / LIST, f"{key}/{LIST}")
        for address in before.keys() - {file.address for file in files}:
            self.storage.remove(address)

    def files(self, search_id: str, number: int, attempt: int) -> tuple[StoredFile, ...]:
        """List what an attempt has kept: nothing, if it never came so far."""
        folder = self.attempt(search_id, number, attempt)
        with suppress(FileNotFoundError):
            key = f"{attempt_key(search_id, number, attempt)}/{LIST}"
            self.storage.fetch(key, folder / LIST)
        return _listed(folder)

    def exports(self, search_id: str, number: int, attempt: int) -> tuple[StoredFile, ...]:
        """List the files that an attempt exported."""
        found = self.files(search_id, number, attempt)
        return tuple(file for file in found if file.name.startswith("export/"))

    def fetch(self, file: StoredFile) -> Path:
        """The file here, whole and unchanged; ArtifactNotFound, or ArtifactDamaged."""
        try:
            return self._whole(file.key, file.address, file.sha256)
        except FileNotFoundError as error:
            raise ArtifactNotFound(file.name) from error

    def restore(
        self, search_id: str, number: int, attempt: int, *, besides: Container[str] = ()
    ) -> Path:
        """The folder of an attempt, with all that it has kept; the files `besides` as they are."""
        folder = self.attempt(search_id, number, attempt)
        for file in self.files(search_id, number, attempt):
            if file.name not in besides or not (folder / file.name).exists():
                self.fetch(file)
        return folder

    def remove_search(self, search_id: str) -> None:
        """Remove every file of a search; what is not there is removed already."""
        for entry in list(self.storage.entries(f"searches/{search_id}")):
            self.storage.remove(entry.address)
        shutil.rmtree(self.home / "searches" / search_id, ignore_errors=True)

    def _keep(
        self, path: Path, folder: Path, key: str, before: Mapping[str, StoredFile]
    ) -> StoredFile:
        # By another name, for a checkpoint may be replaced while it is read.
        pinned = path.with_name(f".kept-{uuid4().hex}")
        pinned.hardlink_to(path)
        try:
            name = path.relative_to(folder).as_posix()
            sha256, size = _sha256(pinned), pinned.stat().st_size
            address = self.storage.address(f"{key}/{name}", sha256)
            file = StoredFile(name, f"{key}/{name}", address, sha256, size)
            if before.get(address) != file:
                self.storage.keep(pinned, address)
            return file
        finally:
            pinned.unlink()

    def _whole(self, key: str, address: str, sha256: str) -> Path:
        local = self.home / key
        if not local.is_file() or not _digest(local).startswith(sha256):
            self.storage.fetch(address, local)
        if not _digest(local).startswith(sha256):
            raise ArtifactDamaged(PurePosixPath(key).name)
        return local


def make_store(settings: Settings) -> ArtifactStore:
    """Return the store that an installation's settings name."""
    return ArtifactStore(settings.home, make_storage(settings.artifacts_url, settings.home))


def attempt_key(search_id: str, number: int, attempt: int) -> str:
    """Where the files of an attempt are, below the home and in the storage."""
    return f"searches/{search_id}/trials/{number}/attempt-{attempt}"


def _files_of(folder: Path) -> list[Path]:
    """List what is whole: what begins with a dot is being written, or its writer died."""
    return sorted(
        path
        for path in folder.rglob("[!.]*")
        if path.is_file() and path.name != LIST and not path.is_symlink()
    )


def _listed(folder: Path) -> tuple[StoredFile, ...]:
    try:
        listed = json.loads((folder / LIST).read_bytes())
    except FileNotFoundError:
        return ()
    return tuple(StoredFile(**file) for file in listed)


def _digest(path: Path) -> str:
    found = path.stat()
    return _known_digest(path, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4096)
def _known_digest(path: Path, _inode: int, _modified: int, _size: int) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _receive(chunks: Iterable[bytes], file: BinaryIO, max_bytes: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"the upload is larger than the {max_bytes:,} bytes this server takes")
        digest.update(chunk)
        file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest(), size


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def _checked(path: Path, size: int) -> _Tensor:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ArtifactRefused(
                "this is not a safetensors file, or its header was cut off", field="file"
            )
        tensor = _described(_header(file.read(length)))
    _check_shape(tensor)
    _check_extent(tensor, size - 8 - length)
    try:
        with safe_open(path, framework="numpy"):
            pass  # the library that trials read with is content, too
    except SafetensorError as error:
        raise ArtifactRefused("the file's header is damaged", field="file") from error
    _check_finite(path, tensor, offset=8 + length)
    return tensor


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactRefused("this is not a safetensors file", field="file") from error
    if not isinstance(header, dict):
        raise ArtifactRefused("this is not a safetensors file", field="file")
    header.pop("__metadata__", None)
    return header


def _described(header: dict[str, Any]) -> _Tensor:
    if len(header) != 1:
        names = ", ".join(sorted(header)[:5])
        raise ArtifactRefused(
            f"the file holds {len(header)} tensors{f' ({names})' if names else ''}; "
            "send a file with exactly one, the matrix",
            field="file",
        )
    ((name, entry),) = header.items()
    if "\0" in name:  # PostgreSQL keeps no such text
        raise ArtifactRefused("the tensor's name holds a NUL character", field="file")
    try:
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        numbers = (*shape, start, end)
        well_formed = all(type(number) is int and number >= 0 for number in numbers)
    except (TypeError, KeyError, ValueError) as error:
        raise ArtifactRefused("the file's header is damaged", field="file") from error
    if not well_formed:
        raise ArtifactRefused("the file's header is damaged", field="file")
    return _Tensor(name, str(entry.get("dtype")), shape, start, end)


def _check_shape(tensor: _Tensor) -> None:
    where = f"file.{tensor.name}"
    if tensor.dtype not in _FLOATS:
        raise ArtifactRefused(
            f"the matrix is of type {tensor.dtype}; send one of {', '.join(_FLOATS)}", field=where
        )
    if len(tensor.shape) != 2:
        raise ArtifactRefused(
            f"the tensor's shape is {list(tensor.shape)}; a matrix has 2 dimensions", field=where
        )
    if 0 in tensor.shape:
        raise ArtifactRefused(f"the matrix is empty: {list(tensor.shape)}", field=where)


def _check_extent(tensor: _Tensor, present: int) -> None:
    rows, columns = tensor.shape
    needed = rows * columns * _FLOATS[tensor.dtype].bytes
    if (tensor.start, tensor.end) != (0, needed) or present != needed:
        raise ArtifactRefused(
            f"the matrix needs {needed:,} bytes, but {present:,} arrived: "
            "the file is cut off or damaged",
            field=f"file.{tensor.name}",
        )


def _check_finite(path: Path, tensor: _Tensor, *, offset: int) -> None:
    import numpy as np  # noqa: PLC0415  (12 MB, and nothing else in the API needs it)

    # By bit pattern, for numpy has no bfloat16; row by row, for the file may be large.
    kind = _FLOATS[tensor.dtype]
    numbers = np.memmap(path, dtype=kind.bits, mode="r", offset=offset, shape=tensor.shape)
    stretch = max(1, (1 << 22) // tensor.shape[1])
    holds_something = False
    for first in range(0, tensor.shape[0], stretch):
        part = numbers[first : first + stretch]
        holds_something |= bool((part << 1).any())  # all but the sign
        bad = (part & kind.exponent) > kind.largest
        if bad.any():
            row, column = (int(index) for index in np.argwhere(bad)[0])
            raise ArtifactRefused(
                f"the matrix is not finite: row {first + row}, column {column} is NaN, infinite or "
                "too large for single precision",
                field=f"file.{tensor.name}",
            )
    if not holds_something:
        raise ArtifactRefused(
            "the matrix is all zeros, so there is nothing to find", field=f"file.{tensor.name}"
        )
