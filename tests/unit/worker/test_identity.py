"""A worker is known by its process: nobody waits for the lease of one that is gone."""

import os
import subprocess
import sys
from datetime import UTC, datetime

from service.settings import Settings
from tests.integration.story import REFERENCE, Story
from worker.identity import is_gone, worker_name
from worker.recovery import sweep

NAME = "from worker.identity import worker_name; print(worker_name(), flush=True); input()"


def other_worker() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_worker_is_gone_as_soon_as_its_process_is(settings: Settings, story: Story) -> None:
    process, name = other_worker()
    with process:
        assert not is_gone(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(name), "a zombie does nothing"
    assert is_gone(name)
    story.now = datetime.now(UTC)  # its lease is long
    story.begin(REFERENCE, name)
    sweep(settings, story.database)
    assert story.told_of(REFERENCE)[-2:] == ["LOST", "WAITING"]
    assert story.trial(REFERENCE).sentence == "its worker's process is gone"


def test_a_number_that_was_given_again_is_another_worker() -> None:
    assert not is_gone(worker_name())
    host, _, rest = worker_name().partition("/")
    pid, start, place = rest.split(".")
    assert is_gone(f"{host}/{pid}.{int(start) - 1}.{place}")


def test_nothing_is_known_of_workers_elsewhere() -> None:
    elsewhere = worker_name()[:-8] + "0" * 8
    assert not is_gone(elsewhere.replace(f"/{os.getpid()}.", "/4194303."))
    assert not is_gone("one")
