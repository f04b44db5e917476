"""A file that is replaced is the old one or the new one, also where there is no room."""

import errno
import resource
import shutil
from pathlib import Path

import pytest
import torch

from models.checkpoint import save_tensors
from models.durable import DiskFull, replace_file, sync, wants_room


@pytest.fixture
def small_files() -> object:
    """A limit of size, which stands for a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_what_finds_no_room_leaves_the_old_file_and_says_why(tmp_path: Path) -> None:
    text, tensors = tmp_path / "text", tmp_path / "tensors.safetensors"
    replace_file(text, lambda path: path.write_text("old"))
    sync(text)
    sync(tmp_path)
    with pytest.raises(DiskFull, match="No space left"):
        replace_file(text, lambda path: path.write_text("new" * 4096))
    with pytest.raises(DiskFull):
        save_tensors(tensors, {"weight": torch.zeros(4096)})
    with pytest.raises(DiskFull):  # programs are written as torch writes everything
        replace_file(tmp_path / "program.pt2", lambda path: torch.save(torch.zeros(4096), path))
    assert text.read_text() == "old"
    assert list(tmp_path.iterdir()) == [text]


def test_other_failures_are_not_taken_for_want_of_room(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "file", lambda path: tmp_path.write_text("text"))
    assert wants_room(OSError(errno.EDQUOT, "quota"))
    assert not wants_room(RuntimeError("anything else"))
    assert not wants_room(OSError("anything else"))


def test_a_folder_that_found_no_room_is_told_by_its_files(tmp_path: Path) -> None:
    for folder, name in (("from", "large"), ("to", "")):
        (tmp_path / folder / name).mkdir(parents=True)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    (tmp_path / "from" / "file").write_bytes(b"0" * 10_000)
    (tmp_path / "to" / "file").symlink_to(full)
    with pytest.raises(shutil.Error) as refused:
        shutil.copytree(tmp_path / "from", tmp_path / "to", dirs_exist_ok=True)
    assert wants_room(refused.value)
