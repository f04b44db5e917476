"""What a training goes on from when its newest checkpoint is damaged, or was never written."""

import errno
from pathlib import Path

import pytest
import torch

from models.durable import DiskFull
from search import resumption
from search.resumption import Checkpoint


def save(checkpoint: Checkpoint, epoch: int) -> None:
    checkpoint.save({"weight": torch.full((8,), float(epoch))}, {"epoch": epoch})


def epoch_of(checkpoint: Checkpoint) -> int | None:
    loaded = checkpoint.load()
    return None if loaded is None else loaded[1]["epoch"]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.unlink()  # what else has this name keeps its bytes
    path.write_bytes(content)


def test_the_newest_state_is_gone_on_from(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    assert checkpoint.load() is None
    for epoch in (1, 2):
        save(checkpoint, epoch)
    assert epoch_of(checkpoint) == 2


def test_a_bit_that_has_changed_leads_back_to_what_the_disk_was_known_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = Checkpoint(path)
    monkeypatch.setattr(resumption, "SYNC_SECONDS", 0.0)
    save(checkpoint, 1)
    monkeypatch.setattr(resumption, "SYNC_SECONDS", 1e9)
    save(checkpoint, 2)
    flip_a_bit(path)
    assert epoch_of(checkpoint) == 1
    flip_a_bit(path.with_name("checkpoint-held.safetensors"))
    assert checkpoint.load() is None


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors")
    save(checkpoint, 1)

    def full(*_: object) -> None:
        raise DiskFull(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(resumption, "save_tensors", full)
        save(checkpoint, 2)
    assert "no room" in caplog.text
    assert epoch_of(checkpoint) == 1
    save(checkpoint, 3)
    assert epoch_of(checkpoint) == 3
