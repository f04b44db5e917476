"""Files: uploads, which are checked before they are kept, and the folders of attempts."""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, final
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError, safe_open

from service.errors import ArtifactNotFound, ArtifactRefused, TooLarge
from service.jobs.views import ArtifactView

# A safetensors header that is longer than this describes no single matrix.
MAX_HEADER_BYTES = 1024 * 1024


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


@final
class FolderStore:
    """Everything the service and its workers keep as files, under one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()

    @property
    def uploads(self) -> Path:
        """Where uploads lie, each under its id."""
        return self.home / "artifacts"

    @property
    def cache(self) -> Path:
        """What is kept between searches."""
        return self.home / "cache"

    def attempt(self, search_id: str, number: int, attempt: int) -> Path:
        """The folder of one attempt at one trial."""
        return self.home / "searches" / search_id / "trials" / str(number) / f"attempt-{attempt}"

    def put(self, chunks: Iterable[bytes], *, max_bytes: int, now: datetime) -> ArtifactView:
        """Keep an upload that is one finite matrix; refuse any other and keep nothing of it."""
        self.uploads.mkdir(parents=True, exist_ok=True)
        arriving = self.uploads / f"arriving-{uuid4().hex}"
        try:
            with arriving.open("xb") as file:
                sha256, size = _receive(chunks, file, max_bytes)
            tensor = _checked(arriving, size)
            artifact_id = f"art_{sha256[:32]}"
            arriving.replace(self.uploads / artifact_id)
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

    def upload(self, artifact_id: str) -> Path:
        """The file of an upload."""
        # An id is one component: nothing a client sends leads to another folder.
        path = self.uploads / artifact_id
        if Path(artifact_id).name != artifact_id or not path.is_file():
            raise ArtifactNotFound(artifact_id)
        return path

    def exports(self, search_id: str, number: int, attempt: int) -> tuple[Path, ...]:
        """Every file that an attempt exported."""
        folder = self.attempt(search_id, number, attempt) / "export"
        # What begins with a dot is still being written, or was when its writer died.
        return tuple(sorted(path for path in folder.glob("[!.]*") if path.is_file()))


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
