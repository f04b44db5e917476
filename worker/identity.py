"""Which process a worker is, so that others on its machine see at once when it is gone."""

import hashlib
import os
import re
import socket
from functools import cache
from pathlib import Path

_NAME = re.compile(r"(?P<host>.+)/(?P<pid>\d+)\.(?P<start>\d+)\.(?P<place>[0-9a-f]{8})")
# Of the fields after a process's name: whether it is a zombie, and when it started.
_STATE, _START = 0, 19


@cache
def worker_name() -> str:
    """What this process is called in leases and events."""
    name, place = f"{socket.gethostname()}/{os.getpid()}", _place()
    started = _started(os.getpid())
    return name if place is None or started is None else f"{name}.{started}.{place}"


def is_gone(name: str) -> bool:
    """Whether the worker of this name ran here and runs no more; elsewhere may be anything."""
    found = _NAME.fullmatch(name)
    if found is None or found["place"] != _place():
        return False
    # A number is given again, but not with the same start.
    return _started(int(found["pid"])) != found["start"]


@cache
def _place() -> str | None:
    """Name this boot of this machine and the processes seen from here, a container's own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        seen = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return hashlib.sha256(f"{boot} {seen}".encode()).hexdigest()[:8]


def _started(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in "ZX" else fields[_START]
