"""Uploads: what is kept, what is refused and with which sentence, and where files may lie."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from service.artifacts import ArtifactStore
from service.errors import ArtifactNotFound, ArtifactRefused, TooLarge

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


def put(store: ArtifactStore, content: bytes, *, limit: int = 1_000_000) -> Any:
    return store.put(iter([content[:5], content[5:]]), max_bytes=limit, now=NOW)


def written(header: object, body: bytes = b"") -> bytes:
    """A file with any header at all."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(dtype: str, numbers: np.ndarray[Any, Any]) -> bytes:
    """A file with the bits of `numbers` under any type's name."""
    entry = {"dtype": dtype, "shape": numbers.shape, "data_offsets": [0, numbers.nbytes]}
    return written({"weight": entry}, numbers.tobytes())


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_finite_matrix_is_kept(store: ArtifactStore, dtype: type[np.floating[Any]]) -> None:
    content = save({"weight": MATRIX.astype(dtype)}, metadata={"made by": "a test"})
    kept = put(store, content)
    assert (kept.rows, kept.columns, kept.tensor) == (3, 4, "weight")
    assert kept.bytes == len(content)
    assert store.upload(kept.id).read_bytes() == content


def test_a_bfloat16_matrix_is_kept(store: ArtifactStore) -> None:
    numbers = (MATRIX.view(np.uint32) >> 16).astype(np.uint16)
    assert put(store, tensor("BF16", numbers)).dtype == "BF16"


def test_the_same_bytes_are_the_same_artifact(store: ArtifactStore) -> None:
    first, again = put(store, save({"a": MATRIX})), put(store, save({"a": MATRIX}))
    other = put(store, save({"b": MATRIX}))
    assert first == again
    assert first.id != other.id
    assert len(list(store.uploads.iterdir())) == 2


def spoilt(value: float, dtype: type[np.floating[Any]] = np.float32) -> bytes:
    numbers = MATRIX.astype(dtype)
    numbers[1, 2] = value
    return save({"weight": numbers})


ENTRY = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
NOTED = written({"__metadata__": {"made": 1}, "weight": ENTRY}, bytes(4))
DEEP = (100_000).to_bytes(8, "little") + b"[" * 100_000
WHOLE = save({"weight": MATRIX})
REFUSED: list[tuple[str, bytes, str, str]] = [
    ("nothing", b"", "file", "not a safetensors file"),
    ("a pickle", b"\x80\x04\x95" + b"x" * 100, "file", "not a safetensors file"),
    ("an archive", b"PK\x03\x04" + bytes(100), "file", "not a safetensors file"),
    ("JSON", b'{"weight": [[1, 2], [3, 4]]}', "file", "not a safetensors file"),
    ("a header that is no object", written([1]), "file", "not a safetensors file"),
    ("a header that is no JSON", b"\x04" + bytes(7) + b"nope", "file", "not a safetensors file"),
    ("half a header", WHOLE[:20], "file", "cut off"),
    ("a bottomless header", DEEP, "file", "not a safetensors file"),
    ("half a matrix", WHOLE[:-7], "file.weight", "48 bytes, but 41 arrived"),
    ("more than a matrix", WHOLE + b"extra", "file.weight", "cut off or damaged"),
    ("integers", save({"weight": MATRIX.astype(np.int32)}), "file.weight", "type I32"),
    ("a vector", save({"weight": MATRIX[0]}), "file.weight", "2 dimensions"),
    ("a stack", save({"weight": MATRIX[None]}), "file.weight", "2 dimensions"),
    ("no rows", save({"weight": MATRIX[:0]}), "file.weight", "empty"),
    ("NaN", spoilt(np.nan), "file.weight", "row 1, column 2"),
    ("infinity", spoilt(-np.inf), "file.weight", "not finite"),
    ("half infinity", spoilt(np.inf, np.float16), "file.weight", "not finite"),
    ("double NaN", spoilt(np.nan, np.float64), "file.weight", "not finite"),
    ("brain NaN", tensor("BF16", np.full((2, 2), 0x7FC0, np.uint16)), "file.weight", "not finite"),
    ("too large", spoilt(1e300, np.float64), "file.weight", "too large"),
    ("zeros", save({"weight": -0.0 * MATRIX}), "file.weight", "all zeros"),
    ("two tensors", save({"a": MATRIX, "b": MATRIX}), "file", "2 tensors (a, b)"),
    ("notes that are no text", NOTED, "file", "damaged"),
    ("no tensor", written({"__metadata__": {}}), "file", "0 tensors"),
    ("no shape", written({"weight": {"dtype": "F32"}}), "file", "damaged"),
    (
        "negative offsets",
        written({"weight": {"dtype": "F32", "shape": [1, -1], "data_offsets": [0, -4]}}),
        "file",
        "damaged",
    ),
    (
        "a size beyond measure",
        written({"weight": {"dtype": "F32", "shape": [2**62, 9], "data_offsets": [0, 4]}}),
        "file.weight",
        "cut off or damaged",
    ),
]


@pytest.mark.parametrize(
    ("content", "field", "sentence"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_what_no_search_can_use_is_refused_and_nothing_is_kept(
    store: ArtifactStore, content: bytes, field: str, sentence: str
) -> None:
    with pytest.raises(ArtifactRefused) as refused:
        put(store, content)
    assert refused.value.field == field
    assert sentence in refused.value.sentence
    assert list(store.uploads.iterdir()) == []


def test_a_name_that_a_database_cannot_keep_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(ArtifactRefused, match="NUL"):
        put(store, save({"a\0b": MATRIX}))


def test_what_is_too_large_is_refused_before_it_has_all_come(store: ArtifactStore) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    with pytest.raises(TooLarge, match="5,000"):
        store.put(endless(), max_bytes=5000, now=NOW)
    assert list(store.uploads.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(store: ArtifactStore) -> None:
    def breaking() -> Iterator[bytes]:
        yield WHOLE[:30]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        store.put(breaking(), max_bytes=5000, now=NOW)
    assert list(store.uploads.iterdir()) == []


OUTSIDE: list[Callable[[ArtifactStore], Path]] = [
    lambda store: store.upload("art_0"),
    lambda store: store.upload("../secret"),
    lambda store: store.upload("..%2Fsecret"),
]


@pytest.mark.parametrize("asked", OUTSIDE)
def test_a_name_never_leads_to_another_folder(
    store: ArtifactStore, asked: Callable[[ArtifactStore], Path]
) -> None:
    store.uploads.mkdir(parents=True)
    (store.home / "secret").touch()
    with pytest.raises(ArtifactNotFound):
        asked(store)
