"""What can happen to an installation while it works: each strike is one fault, with its repair."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import httpx
import psutil

from tests.integration.installation import STOP_SECONDS, Installation, children_of, kill_9
from tests.servers import Postgres, Valkey
from tests.shifted_clock import shifted

# The API, which dies when a transaction is committed and its messages are not yet sent.
DYING_API = """
import os, signal
from service import queue
queue._send = lambda _: os.kill(os.getpid(), signal.SIGKILL)
from service.cli import app
app()
"""
SEND_AGAIN = """
import sys
from service.queue import RUN_TRIAL, celery_app
for trial_id in sys.argv[1:]:
    for _ in range(2):
        celery_app().send_task(RUN_TRIAL, args=[trial_id])
"""
STREAMS = 20
# Less than a checkpoint, more than an attempt's log.
SMALL_BYTES = 5000
FULL = "no room for a checkpoint"


class Missed(Exception):
    """There was nothing to strike at: the trial or its search had just ended."""


@final
@dataclass
class Scene:
    """What the strikes strike at."""

    installed: Installation
    chance: random.Random
    postgres: Postgres | None = None
    valkey: Valkey | None = None
    search_id: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    thorough: bool = False
    seconds: dict[str, list[float]] = field(default_factory=dict)
    moments: Counter[str] = field(default_factory=Counter)

    def bide(self) -> None:
        """Wait for a moment that chance decides: any, or one at which a trial has come further."""
        time.sleep(self.chance.uniform(0, 3))
        if (
            self.thorough
            and self.chance.random() < 0.5
            and (trial := self.wait_for_a_trial()) is not None
        ):
            until = time.monotonic() + self.chance.uniform(0, 30)
            while time.monotonic() < until and not _left(self, trial) and not self.stage(trial):
                time.sleep(0.2)
            time.sleep(self.chance.uniform(0, 2))

    def stage(self, trial: Mapping[str, Any]) -> str | None:
        """What a trial is doing: None while it starts."""
        phase = self.installed.trial(self.search_id, trial["number"])["phase"]
        return None if phase is None else str(phase)

    def took(self, what: str, seconds: float) -> None:
        """Remember how long something took."""
        self.seconds.setdefault(what, []).append(round(seconds, 2))

    def events(self) -> list[dict[str, Any]]:
        """All that became of the search so far."""
        found: list[dict[str, Any]] = []
        while True:
            after = found[-1]["id"] if found else 0
            page = self.installed.get(f"{self.search_id}/events?after={after}&limit=200")["items"]
            if not page:
                return found
            found += page

    def told_of(self, trial: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What became of one attempt at a trial."""
        whose = (trial["number"], trial["attempt"])
        return [one for one in self.events() if (one["trial_number"], one["attempt"]) == whose]

    def log_of(self, trial: Mapping[str, Any]) -> Callable[[], str]:
        """What one attempt at a trial has logged, whenever it is asked for."""
        folder = self.installed.home / f"searches/{self.search_id}/trials/{trial['number']}"
        path = folder / f"attempt-{trial['attempt']}.log"
        return lambda: path.read_text(errors="replace") if path.exists() else ""

    def running(self) -> dict[str, Any] | None:
        """A trial that runs just now."""
        trials = self.installed.get(f"{self.search_id}/trials")["items"]
        return next((trial for trial in trials if trial["state"] == "RUNNING"), None)

    def ended(self) -> bool:
        """Whether the search is over."""
        return self.installed.get(self.search_id)["ended_at"] is not None

    def wait_for_a_trial(self) -> dict[str, Any] | None:
        """Wait until a trial runs, or the search is over."""
        found: list[dict[str, Any]] = []

        def something() -> bool:
            trial = self.running()
            found.extend([trial] if trial else [])
            return bool(found) or self.ended()

        self.installed.wait(something)
        return found[0] if found else None

    def wait_for_a_process(self) -> tuple[dict[str, Any], list[psutil.Process]]:
        """Wait until a trial has a process; Missed if the search is over before."""
        while (trial := self.wait_for_a_trial()) is not None:
            children = children_of(self.installed.one_worker())
            if children and not _left(self, trial):
                return trial, children
            time.sleep(0.1)
        raise Missed


Strike = Callable[[Scene], None]


def kill_the_worker(scene: Scene) -> None:
    """With kill -9, and start another, as its supervisor would."""
    worker = scene.installed.one_worker()
    trial = scene.running()
    doing = "starting" if trial is None else trial["phase"] or "starting"
    scene.moments["between trials" if trial is None else f"{trial['kind']} {doing}"] += 1
    kill_9(worker)
    worker.wait()
    began = time.monotonic()
    scene.installed.start_worker()
    if trial is not None:
        scene.installed.wait(lambda: _left(scene, trial))
        scene.took("worker killed, trial back", time.monotonic() - began)


def kill_the_trial(scene: Scene) -> None:
    """With kill -9: its worker sees it and says so at once."""
    trial, children = scene.wait_for_a_process()
    began = time.monotonic()
    kill_9(children[0])
    scene.installed.wait(lambda: _left(scene, trial))
    scene.took("trial killed, trial back", time.monotonic() - began)
    sentences = [event["sentence"] for event in scene.told_of(trial) if event["state"] == "LOST"]
    assert sentences in ([], ["its process ended with -9"]), sentences


def kill_the_api(scene: Scene) -> None:
    """Between the commit of a search and its first message: the answer never comes."""
    installed = scene.installed
    installed.restart_api(DYING_API)
    known = {one["id"] for one in installed.searches()}
    with suppress(httpx.TransportError):
        installed.submit(scene.spec)
        raise AssertionError("it should have died")
    installed.restart_api()
    (found,) = {one["id"] for one in installed.searches()} - known
    assert installed.told_of(found, None)[0] == "QUEUED"
    scene.search_id = found


def stop_beyond_the_lease(scene: Scene) -> None:
    """SIGSTOP a worker and its trial until another goes on, then SIGCONT: it must write nothing."""
    trial, children = scene.wait_for_a_process()
    worker = scene.installed.one_worker()
    frozen = [psutil.Process(worker.pid), *children]
    for process in frozen:
        process.suspend()
    other = scene.installed.start_worker()
    scene.installed.wait(lambda: _left(scene, trial))
    for process in frozen:
        process.resume()
    _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
    assert not alive, alive  # it learns that it was replaced, and ends
    late = [event["state"] for event in scene.told_of(trial)]
    assert late in (["RUNNING", "LOST", "WAITING"], ["RUNNING", "LOST", "FAILED"]), late
    worker.terminate()
    worker.wait(STOP_SECONDS)
    assert other.poll() is None


def send_twice(scene: Scene) -> None:
    """Every message of the search, twice more."""
    trials = scene.installed.get(f"{scene.search_id}/trials")["items"]
    ids = [f"{scene.search_id}-{trial['number']}" for trial in trials]
    scene.installed.run("-c", SEND_AGAIN, *ids)


def lose_messages(scene: Scene) -> None:
    """Every message: those in folders are removed, Redis is restarted empty."""
    if scene.valkey is not None:
        scene.valkey.stop()
        time.sleep(scene.chance.uniform(0, 2))
        scene.valkey.start()
        return
    for message in (scene.installed.home / "broker" / "messages").glob("*"):
        message.unlink(missing_ok=True)


def restart_postgres(scene: Scene) -> None:
    """Stop it, as if its machine had died, wait a moment, start it."""
    assert scene.postgres is not None
    scene.postgres.stop(signal.SIGQUIT)
    time.sleep(scene.chance.uniform(0, 2))
    scene.postgres.start()


def fill_the_disk(scene: Scene) -> None:
    """The trial's process can write nothing large, until it has missed a checkpoint."""
    trial, children = scene.wait_for_a_process()
    log, noticed = scene.log_of(trial), False
    with suppress(psutil.NoSuchProcess):
        before = children[0].rlimit(psutil.RLIMIT_FSIZE)
        # There is room for a log, which tells of it.
        children[0].rlimit(psutil.RLIMIT_FSIZE, (SMALL_BYTES, before[1]))
        until = time.monotonic() + 20
        while (
            time.monotonic() < until and not (noticed := FULL in log()) and not _left(scene, trial)
        ):
            time.sleep(0.2)
        children[0].rlimit(psutil.RLIMIT_FSIZE, before)
    if not noticed:
        raise Missed
    scene.moments["checkpoints without room"] += 1


def shift_the_clock(scene: Scene) -> None:
    """Of a worker, by an hour, while another has the right time, and then stops.

    On SQLite there is one machine: it has another time for whatever starts from now on.
    """
    installed, hour = scene.installed, scene.chance.choice([3600, -3600])
    old, known = installed.one_worker(), installed.worker_names()
    clock = shifted(hour, installed.home)
    if scene.postgres is None:
        installed.environment |= clock
        installed.restart_api()
        kill_9(old)
    new = installed.start_worker(**clock)
    installed.wait(lambda: bool(installed.worker_names() - known))
    assert clock["LD_PRELOAD"] in Path(f"/proc/{new.pid}/maps").read_text()
    time.sleep(scene.chance.uniform(0, 3))
    if scene.postgres is not None:
        old.terminate()
    old.wait(STOP_SECONDS)


def stop_with_open_streams(scene: Scene) -> None:
    """SIGTERM the API while browsers listen to events, then start it again."""
    url = f"{scene.installed.url}/v1/searches/{scene.search_id}/events"

    def listen(_: int) -> None:
        with (
            suppress(httpx.TransportError),
            httpx.Client(timeout=60) as client,
            client.stream("GET", url) as stream,
        ):
            for _line in stream.iter_lines():
                pass

    with ThreadPoolExecutor(STREAMS) as pool:
        open_streams = [pool.submit(listen, number) for number in range(STREAMS)]
        time.sleep(1)
        scene.took("API stopped with streams", scene.installed.restart_api())
        for stream in open_streams:
            stream.result()
    assert scene.seconds["API stopped with streams"][-1] <= 10


ALL: dict[str, Strike] = {
    strike.__name__: strike
    for strike in (
        *(kill_the_api, send_twice, stop_beyond_the_lease, lose_messages, restart_postgres),
        *(fill_the_disk, shift_the_clock, kill_the_worker, kill_the_trial),
        stop_with_open_streams,
    )
}


def _left(scene: Scene, trial: Mapping[str, Any]) -> bool:
    """Whether a trial has left the attempt that it was in."""
    now = scene.installed.trial(scene.search_id, trial["number"])
    return bool(now["attempt"] != trial["attempt"] or now["state"] != "RUNNING")
