"""What a worker and its children agree on: none outlives it, and how one says why it ends."""

import ctypes
import os
import signal
import sys

from service import jobs

PR_SET_PDEATHSIG = 1
# With this status a trial's process says that it found no room for its files.
NO_ROOM = os.EX_CANTCREAT
# And with this one that the store of files did not answer.
AWAY = os.EX_UNAVAILABLE
# The exit status of a child that leaves its trial with a checkpoint, to be gone on with.
LEFT = 75


def die_with(parent: int) -> None:
    """End this process, by SIGKILL, as soon as its worker is gone: nobody else would stop it."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if orphaned(parent):
        # The parent was gone before the kernel was asked to tell of it.
        os.kill(os.getpid(), signal.SIGKILL)


def orphaned(parent: int) -> bool:
    """Whether another process than `parent` is this one's parent by now."""
    return os.getppid() != parent


def facts(claim: jobs.Claim) -> dict[str, str | int | None]:
    """What is logged of an attempt says so."""
    return {
        "request_id": claim.request_id,
        "search_id": claim.search_id,
        "trial": claim.planned.number,
        "attempt": claim.attempt,
    }
