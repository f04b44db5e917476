"""Files that are there wholly or not at all, and, where it is asked for, after a loss of power."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from threading import get_ident

# What the system says where there is no room: on the disk, in a quota, below a limit of size.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries that write by themselves put it into words of their own; shutil does of several files.
_IN_WORDS = (
    *(f"os error {number})" for number in _NO_ROOM),
    *(f"[Errno {number}]" for number in _NO_ROOM),
    *("file write failed", "unexpected pos"),
)


class DiskFull(OSError):
    """There is no room for a file: nothing of it was left, and what was there before still is."""


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file in the same folder, then put it in the place of the old.

    Raises DiskFull where there is no room.
    """
    writer = f"{os.getpid()}-{get_ident()}"
    temporary = path.with_name(f".{path.stem}-{writer}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    except Exception as error:
        if wants_room(error):
            raise DiskFull(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def wants_room(error: BaseException) -> bool:
    """Whether a write failed only because there was no room for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_ROOM
    return any(words in str(error) for words in _IN_WORDS)


def sync(path: Path) -> None:
    """Let the disk hold a file, or what a folder lists, before anything else is said of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
