"""A child must not outlive its worker: nobody would be left to stop it."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """End this process, by SIGKILL, as soon as the process that started it is gone."""
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
