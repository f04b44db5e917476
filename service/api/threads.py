"""How many threads answer requests, and what memory they keep between them."""

import ctypes
import sys

from anyio import to_thread

# As many as a database gives connections to: more would only wait for each other.
THREADS = 15
# From glibc's malloc.h.
M_ARENA_MAX = -8
ARENAS = 2


def be_few() -> None:
    """Bound the threads of this event loop, and the pools that the C library gives them."""
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    if sys.platform == "linux":
        # Each thread would keep a pool of its own, full of what its largest answer once was.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, ARENAS)
