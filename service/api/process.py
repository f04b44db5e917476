"""How one process answers many: few threads, little memory between them, short collections."""

import ctypes
import gc
import sys
from typing import TYPE_CHECKING

from anyio import to_thread

if TYPE_CHECKING:
    from fastapi import FastAPI

# New objects, collections of these, and of those, until the next collection of each kind. Python's
# own are for programs that hold less: they would stop all requests for .1 s every other second.
COLLECT_AFTER = (10_000, 10, 100)
# From glibc's malloc.h.
M_ARENA_MAX = -8
ARENAS = 2


def load_app() -> "FastAPI":
    """Make the application in a process of its own, as uvicorn calls it.

    What is loaded stays for good, and the garbage collector never looks through it: modules, routes
    and schemas are some 400,000 objects, for which all requests would stop for .1 s time and again.
    """
    gc.disable()
    from service.api.app import create_app  # noqa: PLC0415  (this is what takes the time)

    app = create_app()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    gc.enable()
    return app


def use_few_threads(number: int) -> None:
    """Bound the threads of this event loop, and the pools that the C library gives them."""
    to_thread.current_default_thread_limiter().total_tokens = number
    if sys.platform == "linux":
        # Each thread would keep a pool of its own, full of what its largest answer once was.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, ARENAS)
