"""What is kept comes back as it was: from a folder, from fsspec, from an S3 of the test's own."""

import errno
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from models.durable import DiskFull
from service.artifacts import LIST, ArtifactStore
from service.errors import ArtifactDamaged, ArtifactNotFound
from service.storage import FolderStorage, FsspecStorage, StorageAway, make_storage
from tests.closing import Unreachable, closing_storage
from tests.unit.service.test_artifacts import WHOLE, put

WHERE = ("srch_1", 0, 1)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of an empty bucket."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "test")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        storage = FsspecStorage("s3://matnas")
        storage._files.mkdir("matnas")
        yield "s3://matnas"
    server.stop()


@pytest.fixture(params=["home", "folder", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "home":
            return ""
        case "folder":
            return f"file://{tmp_path}/kept"
        case "memory":
            return f"memory://{uuid4().hex}"
        case _:
            return f"{request.getfixturevalue('s3')}/{uuid4().hex}"


@pytest.fixture
def store(url: str, tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home", make_storage(url, tmp_path / "home"))


@pytest.fixture
def elsewhere(url: str, tmp_path: Path) -> ArtifactStore:
    """The same store seen from another machine, or from the same folder."""
    home = tmp_path / ("other" if url else "home")
    return ArtifactStore(home, make_storage(url, home))


def write(store: ArtifactStore, name: str, text: str) -> None:
    path = store.attempt(*WHERE) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LIST
    }


def test_an_attempt_is_restored_elsewhere_as_it_was_saved_last(
    store: ArtifactStore, elsewhere: ArtifactStore
) -> None:
    write(store, "export/network.json", "a network")
    for state in ("first", "second"):
        write(store, "checkpoint.safetensors", state)
        write(store, ".half-written", "")
        store.save(*WHERE)
    (store.attempt(*WHERE) / ".half-written").unlink()
    expected = {"checkpoint.safetensors": "second", "export/network.json": "a network"}
    assert texts(elsewhere.restore(*WHERE)) == expected
    assert [file.name for file in elsewhere.exports(*WHERE)] == ["export/network.json"]
    kept = list(store.storage.entries("searches/srch_1"))
    assert len(kept) == 3, "two files and their list; the first state is gone"
    assert all(abs(one.modified - datetime.now(UTC)) < timedelta(minutes=5) for one in kept)


def test_what_was_removed_before_the_end_is_not_kept(store: ArtifactStore) -> None:
    write(store, "checkpoint.safetensors", "state")
    store.save(*WHERE)
    (store.attempt(*WHERE) / "checkpoint.safetensors").unlink()
    write(store, "export/network.json", "a network")
    store.save(*WHERE)
    assert [file.name for file in store.files(*WHERE)] == ["export/network.json"]


def test_an_upload_comes_back_elsewhere(store: ArtifactStore, elsewhere: ArtifactStore) -> None:
    kept = put(store, WHOLE)
    assert elsewhere.upload(kept.id).read_bytes() == WHOLE
    for _ in range(2):  # twice is harmless
        store.storage.remove(f"artifacts/{kept.id}")
    with pytest.raises(ArtifactNotFound):
        ArtifactStore(store.home.with_name("third"), elsewhere.storage).upload(kept.id)


def test_a_file_that_was_changed_is_fetched_anew_or_refused(store: ArtifactStore) -> None:
    write(store, "export/network.json", "a network")
    store.save(*WHERE)
    (file,) = store.exports(*WHERE)
    write(store, "export/network.json", "a netwerk")
    if store.is_local:
        with pytest.raises(ArtifactDamaged, match=r"network\.json"):
            store.fetch(file)
    else:
        assert store.fetch(file).read_text() == "a network"


def test_an_object_that_was_changed_is_refused(tmp_path: Path) -> None:
    storage = FsspecStorage(f"memory://{uuid4().hex}")
    store = ArtifactStore(tmp_path / "home", storage)
    write(store, "export/network.json", "a network")
    store.save(*WHERE)
    (file,) = store.exports(*WHERE)
    (tmp_path / "other").write_text("something else")
    storage.keep(tmp_path / "other", file.address)
    with pytest.raises(ArtifactDamaged):
        ArtifactStore(tmp_path / "another home", storage).fetch(file)
    storage.remove(file.address)
    with pytest.raises(ArtifactNotFound):
        ArtifactStore(tmp_path / "another home", storage).restore(*WHERE)


@pytest.mark.parametrize("address", ["../secret", "a/../../secret", ""])
def test_no_name_leads_out_of_the_storage(tmp_path: Path, address: str) -> None:
    (tmp_path / "secret").touch()
    with pytest.raises(FileNotFoundError):
        FolderStorage(tmp_path / "kept").fetch(address, tmp_path / "copy")
    if address:
        with pytest.raises(FileNotFoundError):
            FsspecStorage("memory://kept").fetch(address, tmp_path / "copy")


def test_folders_that_become_empty_are_removed(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "kept")
    (tmp_path / "file").write_text("text")
    storage.keep(tmp_path / "file", "searches/one/file")
    storage.keep(tmp_path / "file", "searches/two/file")
    storage.remove("searches/one/file")
    assert [path.name for path in (tmp_path / "kept/searches").iterdir()] == ["two"]


def test_a_store_that_does_not_answer_is_away_whatever_its_library_raises(tmp_path: Path) -> None:
    storage, files = closing_storage()
    (tmp_path / "file").write_text("text")
    storage.keep(tmp_path / "file", "a/file")
    files.closed = True
    asked: list[Callable[[], object]] = [
        lambda: storage.keep(tmp_path / "file", "a/file"),
        lambda: storage.fetch("a/file", tmp_path / "copy"),
        lambda: list(storage.entries("a")),
        lambda: storage.remove("a/file"),
    ]
    for ask in asked:
        with pytest.raises(StorageAway, match="Unreachable: could not connect"):
            ask()
    files.closed = False
    with pytest.raises(FileNotFoundError):
        storage.fetch("a/other", tmp_path / "made/copy")
    assert not (tmp_path / "made").exists()
    storage.fetch("a/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "text"


def test_a_store_that_goes_away_while_it_is_read_leaves_no_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, files = closing_storage()
    (tmp_path / "file").write_text("text")
    storage.keep(tmp_path / "file", "a/file")

    def fail(*_: object) -> bytes:
        raise Unreachable("reset")

    monkeypatch.setattr(type(files.store[f"{storage._root}/a/file"]), "read", fail)
    with pytest.raises(StorageAway):
        storage.fetch("a/file", tmp_path / "into/copy")
    assert list((tmp_path / "into").iterdir()) == []


def test_no_room_here_is_not_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, _ = closing_storage()
    (tmp_path / "file").write_text("text")
    storage.keep(tmp_path / "file", "a/file")

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "replace", fill)
    with pytest.raises(DiskFull):
        storage.fetch("a/file", tmp_path / "copy")
