"""What a training goes on from: the newest checkpoint, or one that outlives a loss of power."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, final

from torch import Tensor

from models.checkpoint import CheckpointError, load_tensors, save_tensors
from models.durable import DiskFull, sync

# To wait for the disk takes as long as a small epoch: so much of a training a loss of power costs.
SYNC_SECONDS = 5.0

log = logging.getLogger(__name__)


@final
class Checkpoint:
    """A file that every epoch replaces, and beside it the newest that the disk is known to hold."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = path.with_name(f"{path.stem}-held{path.suffix}")
        self._synced = monotonic()

    def save(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Keep the state; where there is no room for it, the one before stays and training goes on.

        What is lost then is time, if the training is interrupted before there is room again.
        """
        try:
            save_tensors(self._path, tensors, notes)
            if monotonic() - self._synced > SYNC_SECONDS:
                self._hold()
        except DiskFull as error:
            log.warning("there is no room for a checkpoint: %s", error)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest state that is whole, or None: then the training begins anew."""
        for path in (self._path, self._held):
            if not path.exists():
                continue
            try:
                return load_tensors(path)
            except CheckpointError as error:
                log.warning("a checkpoint is not gone on from: %s", error)
        return None

    def _hold(self) -> None:
        linked = self._held.with_name(f".{self._held.name}-{os.getpid()}")
        sync(self._path)
        with suppress(FileNotFoundError):
            linked.unlink()
        # Another name for the same file: no second copy is written.
        linked.hardlink_to(self._path)
        linked.replace(self._held)
        sync(self._held.parent)
        self._synced = monotonic()
