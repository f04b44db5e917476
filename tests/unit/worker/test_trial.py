"""The process of one trial: what it takes over, and whom it does not outlive."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.artifacts import ArtifactStore
from tests.integration.story import REFERENCE, Story
from worker.trial import _failure, take_over

# A worker that starts a child, which lives as long as it does, and says its number.
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", f'''
import time
from worker.parent import die_with
die_with({os.getpid()})
print("ready", flush=True)
time.sleep(60)
'''], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def begin(home: Path, attempt: int) -> Path:
    return take_over(ArtifactStore(home), "srch_1", 0, attempt)


def files_of(home: Path, attempt: int) -> Path:
    return ArtifactStore(home).attempt("srch_1", 0, attempt)


def test_a_first_attempt_begins_with_an_empty_folder(tmp_path: Path) -> None:
    assert list(begin(tmp_path, 1).iterdir()) == []


def test_an_attempt_goes_on_with_the_files_of_the_newest_before_it(tmp_path: Path) -> None:
    for attempt in (1, 2):
        folder = files_of(tmp_path, attempt) / "hard"
        folder.mkdir(parents=True)
        (folder / "checkpoint.safetensors").write_text(str(attempt))
    # The third never came so far as to have files.
    folder = begin(tmp_path, 4)
    assert (folder / "hard/checkpoint.safetensors").read_text() == "2"
    assert (files_of(tmp_path, 2) / "hard/checkpoint.safetensors").exists()


def test_half_a_copy_is_not_taken_for_an_attempt(tmp_path: Path) -> None:
    first, second = files_of(tmp_path, 1), files_of(tmp_path, 2)
    first.mkdir(parents=True)
    (first / "checkpoint.safetensors").write_text("whole")
    second.with_name("attempt-2.arriving").mkdir()
    second.with_name("attempt-3.arriving").mkdir()
    second.with_name("attempt-2.log").touch()
    assert (begin(tmp_path, 3) / "checkpoint.safetensors").read_text() == "whole"


def test_what_is_only_half_written_is_not_taken_over(tmp_path: Path) -> None:
    first = files_of(tmp_path, 1)
    first.mkdir(parents=True)
    (first / "checkpoint.safetensors").touch()
    # What an attempt that was only believed dead renames while it is being copied.
    (first / ".checkpoint-17.safetensors").symlink_to(tmp_path / "gone")
    assert [path.name for path in begin(tmp_path, 2).iterdir()] == ["checkpoint.safetensors"]


def test_a_child_does_not_outlive_its_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running()


def test_a_child_whose_parent_was_gone_before_it_asked_ends_itself() -> None:
    orphan = f"from worker.parent import die_with; die_with({os.getpid() + 1})"
    assert subprocess.run([sys.executable, "-c", orphan], check=False).returncode == -9


def test_a_replaced_attempt_does_nothing(story: Story) -> None:
    claim = story.begin(REFERENCE)
    story.release(claim)
    events = story.events
    command = [sys.executable, "-m", "worker.trial", claim.trial_id, "1", str(os.getpid())]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "has been replaced" in ended.stderr
    assert story.events == events


def test_a_worker_and_the_start_of_a_trial_import_neither_torch_nor_optuna() -> None:
    code = (
        "import sys, worker.app, worker.trial; sys.exit(sum(name in sys.modules for name in "
        "('torch', 'optuna')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# In place of torch's, which this test need not import: a RuntimeError in words of its own.
OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 bytes)"),
        OutOfMemoryError("XPU: tried to allocate 9 bytes"),
    ],
)
def test_want_of_memory_is_told_from_other_failures(error: Exception) -> None:
    assert _failure(error).reason == "out_of_memory"


def test_a_failure_names_its_class_and_no_path() -> None:
    assert _failure(KeyError("/a/path")).reason == "error"
    assert "/a/path" not in _failure(KeyError("/a/path")).sentence
