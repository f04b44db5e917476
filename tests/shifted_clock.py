"""Another time for a process: a library that is loaded first and moves the clock that it reads."""

import subprocess
from pathlib import Path

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(which, now);
    const char *seconds = getenv("CLOCK_SHIFT_SECONDS");
    if (which == CLOCK_REALTIME && seconds) now->tv_sec += atol(seconds);
    return result;
}
"""


def shifted(seconds: int, folder: Path) -> dict[str, str]:
    """What the environment of a process must say for its clock to be so far ahead, or behind."""
    library = folder / "clock.so"
    if not library.exists():
        source = library.with_suffix(".c")
        source.write_text(SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_SHIFT_SECONDS": str(seconds)}
