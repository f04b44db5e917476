"""Which process a worker is, so that others on its machine see at once when it is gone.

Each holds a lock on a file of its own in the home that they share. The system lets go of it as the
process ends, in whichever container that was, and under whatever number.
"""

import fcntl
import hashlib
import logging
import os
import re
import socket
from functools import cache
from pathlib import Path
from secrets import token_hex
from time import time

_NAME = re.compile(r".+/\d+\.(?P<lock>[0-9a-f]{8}\.(?P<boot>[0-9a-f]{8}))")
_KEPT_SECONDS = 86_400

log = logging.getLogger(__name__)


@cache
def worker_name(home: Path) -> str:
    """What this process is called in leases and events, as long as it lives."""
    name, token, boot = f"{socket.gethostname()}/{os.getpid()}", token_hex(4), _boot()
    if boot is None or not _hold(home / "workers", f"{token}.{boot}"):
        return f"{name}.{token}"
    return f"{name}.{token}.{boot}"


def is_gone(name: str, home: Path) -> bool:
    """Whether the worker of this name ran here and runs no more; elsewhere may be anything."""
    found = _NAME.fullmatch(name)
    # What another machine has locked may look free here. To close a file of ours would unlock it.
    if found is None or found["boot"] != _boot() or name == worker_name(home):
        return False
    return _is_free(home / "workers" / found["lock"])


def _hold(folder: Path, name: str) -> bool:
    """Keep a file locked until this process ends; its children do not inherit that."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if time() - other.stat().st_mtime > _KEPT_SECONDS and _is_free(other):
                other.unlink(missing_ok=True)
        fcntl.lockf(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), fcntl.LOCK_EX)
    except OSError as error:
        log.warning("no lock is to be had, so if this worker dies its lease has to end: %s", error)
        return False
    return True


def _is_free(path: Path) -> bool:
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is held, or is not of this home
        return False
    return True


@cache
def _boot() -> str | None:
    """Name this boot of this machine, which all of its containers share."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return hashlib.sha256(boot.encode()).hexdigest()[:8]
