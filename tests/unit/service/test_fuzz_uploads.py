"""Uploads that mean harm, or were harmed: each is refused with a problem, and nothing is kept."""

import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from sqlalchemy import func, select

from service.artifacts import ArtifactStore
from service.db.tables import ArtifactRow
from service.errors import ArtifactRefused, TooLarge
from service.matrices import MOST_JSON_BYTES, from_rows
from tests.serving import Service, serving

FULL = bool(os.environ.get("FULL_PROOF"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = 20_000
MATRIX = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
GOOD = save({"weight": MATRIX}, metadata={"by": "a test"})
many = settings(
    max_examples=20_000 if FULL else 150,
    deadline=None,
    database=None,
    derandomize=not FULL,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home"), max_upload_bytes=LIMIT) as running:
        yield running


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("store"))


def kept(service: Service) -> tuple[int, list[Path]]:
    with service.database.read() as session:
        rows = session.scalar(select(func.count()).select_from(ArtifactRow)) or 0
    uploads = service.files.uploads
    return rows, sorted(uploads.iterdir()) if uploads.is_dir() else []


def written(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(**changes: Any) -> dict[str, Any]:
    return {"weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]} | changes}


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../etc/passwd", content)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, weight=MATRIX)
    return file.getvalue()


def with_number(value: float) -> bytes:
    matrix = MATRIX.copy()
    matrix[1, 2] = value
    return save({"weight": matrix})


ATTACKS: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 422),
    "too short": (b"\x08", 422),
    "a header that is longer than the file": (b"\xff" * 8 + b"{}", 422),
    "cut off in its header": (GOOD[:30], 422),
    "cut off in its numbers": (GOOD[:-1], 422),
    "with more behind it": (GOOD + b"\0", 422),
    "too large": (b"\0" * (LIMIT + 1), 413),
    "a zip bomb": (zipped(b"\0" * 10_000_000), 422),
    "a gzip bomb": (gzip.compress(b"\0" * 10_000_000), 422),
    "an archive of numpy": (npz(), 422),
    "a pickle": (pickle.dumps(MATRIX), 422),
    "a header that is no object": (written([1], MATRIX.tobytes()), 422),
    "a header of a million brackets": (written(b"[" * 15_000), 422),
    "a header with a name twice": (
        written(
            b'{"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]},'
            b'"b":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}',
            MATRIX.tobytes(),
        ),
        422,
    ),
    "no tensor": (save({}), 422),
    "two tensors": (save({"a": MATRIX, "b": MATRIX}), 422),
    "integers": (save({"weight": MATRIX.astype(np.int64)}), 422),
    "a vector": (save({"weight": MATRIX[0]}), 422),
    "an empty matrix": (save({"weight": MATRIX[:0]}), 422),
    "all zeros": (save({"weight": MATRIX * 0}), 422),
    "NaN": (with_number(np.nan), 422),
    "infinity": (with_number(-np.inf), 422),
    "a number beyond single precision": (save({"weight": np.full((2, 2), 1e300)}), 422),
    "an unknown type": (written(entry(dtype="F31"), MATRIX.tobytes()), 422),
    "a type that is a list": (written(entry(dtype=["F32"]), MATRIX.tobytes()), 422),
    "a negative size": (written(entry(shape=[-3, -4]), MATRIX.tobytes()), 422),
    "a size that is text": (written(entry(shape=["3", 4]), MATRIX.tobytes()), 422),
    "a size that is true": (written(entry(shape=[True, 12]), MATRIX.tobytes()), 422),
    "a size of more than all memory": (written(entry(shape=[2**62, 2**62])), 422),
    "offsets backwards": (written(entry(data_offsets=[48, 0]), MATRIX.tobytes()), 422),
    "offsets elsewhere": (written(entry(data_offsets=[8, 56]), MATRIX.tobytes() + b"\0" * 8), 422),
    "three offsets": (written(entry(data_offsets=[0, 48, 48]), MATRIX.tobytes()), 422),
    "metadata that are no text": (
        written({"__metadata__": {"a": 1}} | entry(), MATRIX.tobytes()),
        422,
    ),
    "a NUL in a name": (written({"a\0b": entry()["weight"]}, MATRIX.tobytes()), 422),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_with_a_problem_and_nothing_is_kept(
    service: Service, attack: str
) -> None:
    content, status = ATTACKS[attack]
    before = kept(service)
    for body in (content, iter([content[:7], content[7:]])):  # of known length, and in chunks
        answer = service.http.put("/v1/artifacts", content=body)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]
    assert kept(service) == before


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x"])
def test_what_would_have_to_be_unpacked_is_refused(service: Service, coding: str) -> None:
    before = kept(service)
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    for method, path in (("PUT", "/v1/artifacts"), ("POST", "/v1/searches")):
        answer = service.http.request(method, path, content=gzip.compress(GOOD), headers=headers)
        assert answer.status_code == 415
    assert kept(service) == before


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2Fetc%2Fpasswd",
        "%2e%2e",
        "....//",
        "/etc/passwd",
        "art_" + "0" * 32 + "%2F..",
        "art_..",
        "srch_" + "0" * 32 + "-0-..",
        "srch_" + "0" * 32 + "-0-..%2Fcheckpoint",
        "C:%5Cx",
        "%ff",
        "a" * 3000,
    ],
)
def test_no_name_leads_out_of_the_folder(service: Service, name: str) -> None:
    (service.settings.home / "secret").write_text("root:x")
    answer = service.http.get(f"/v1/artifacts/{name}")
    assert answer.status_code == 404
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "file"),
        (b"{}", "file"),
        (b"[", "file"),
        (b"[" * 20_000, "file"),
        (b"[1, 2]", "file[0]"),
        (b'[[1, "2"]]', "file[0][1]"),
        (b"[[1, true]]", "file[0][1]"),
        (b"[[1], [1, 2]]", "file"),
        (b"[]", "file.matrix"),
        (b"[[], []]", "file.matrix"),
        (b"[[0, 0]]", "file.matrix"),
        (b"[[1, NaN]]", "file.matrix"),
        (b"[[1, 1e999]]", "file.matrix"),
        (b"[[1e300]]", "file.matrix"),
        (b'[["\xff"]]', "file[0][0]"),
    ],
)
def test_rows_that_are_no_matrix_are_refused(service: Service, content: bytes, field: str) -> None:
    before = kept(service)
    headers = {"Content-Type": "application/json"}
    answer = service.http.put("/v1/artifacts", content=content, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["field"].startswith(field.partition("[")[0])
    assert kept(service) == before


def test_rows_may_have_so_many_bytes() -> None:
    with pytest.raises(TooLarge):
        from_rows(b" " * (MOST_JSON_BYTES + 1))


def test_a_matrix_may_be_sent_as_rows(service: Service) -> None:
    answer = service.http.put("/v1/artifacts", json=[[1, 2.5], [3, -4], [5, 6]])
    assert answer.status_code == 201
    body = answer.json()
    assert (body["rows"], body["columns"], body["dtype"]) == (3, 2, "F64")
    whole = service.http.get(answer.headers["location"]).content
    assert load(whole)["matrix"].tolist() == [[1, 2.5], [3, -4], [5, 6]]
    spec = {"model": {"kind": "matrix", "artifact": body["id"]}, "budget": {"ratio": 0.9}}
    assert service.http.post("/searches", json=spec).status_code == 202


def harmed() -> st.SearchStrategy[bytes]:
    """A good file with some bytes changed, taken out, put in or put elsewhere."""
    place = st.integers(0, len(GOOD))
    change = st.tuples(
        place, place, st.sampled_from(["set", "cut", "insert", "copy"]), st.binary(max_size=9)
    )
    return st.lists(change, min_size=1, max_size=4).map(_harm)


def _harm(changes: list[tuple[int, int, str, bytes]]) -> bytes:
    content = GOOD
    for start, end, how, new in changes:
        low, high = sorted((start, end))
        match how:
            case "set":
                content = content[:low] + new + content[low + len(new) :]
            case "cut":
                content = content[:low] + content[high:]
            case "insert":
                content = content[:low] + new + content[low:]
            case _:
                content = content[:low] + content[low:high] + content[low:]
    return content


def headers() -> st.SearchStrategy[bytes]:
    """A header of the right form with anything at all in its places, and some numbers behind it."""
    number = st.one_of(st.integers(-5, 60), st.integers(), st.floats(), st.booleans(), st.none())
    anything = st.one_of(number, st.text(max_size=5), st.lists(number, max_size=3))
    tensor = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.one_of(st.sampled_from(["F64", "F32", "F16", "BF16", "I8"]), anything),
            "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), anything),
            "data_offsets": st.one_of(st.tuples(st.just(0), st.integers(0, 64)), anything),
            "more": anything,
        },
    )
    names = st.one_of(st.just("weight"), st.just("__metadata__"), st.text(max_size=4))
    header = st.dictionaries(names, st.one_of(tensor, anything), max_size=3)
    return st.builds(written, header, st.binary(max_size=64))


@many
@given(st.one_of(harmed(), headers(), st.binary(max_size=200)))
@example(GOOD)
def test_what_the_reader_takes_is_one_finite_matrix_and_the_rest_leaves_nothing(
    store: ArtifactStore, content: bytes
) -> None:
    before = set(store.uploads.iterdir()) if store.uploads.is_dir() else set()
    refused = None
    try:
        view = store.put(iter([content]), max_bytes=LIMIT, now=NOW)
    except ArtifactRefused as error:
        refused = error
    if refused is not None:
        assert (refused.sentence, refused.field) > ("", "")
        assert set(store.uploads.iterdir()) == before
        return
    path = store.upload(view.id)
    assert path.read_bytes() == content
    if view.dtype != "BF16":  # which numpy cannot read
        (matrix,) = load(content).values()
        assert matrix.shape == (view.rows, view.columns)
        assert np.isfinite(matrix).all()
        assert matrix.any()
