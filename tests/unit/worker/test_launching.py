"""A trial's process is forked from the nursery, and is as one that was started anew."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service import jobs
from service.settings import Settings
from tests.integration.story import REFERENCE, Story
from worker.launching import Anew, Forking, Launcher, Order, TrialProcess
from worker.parent import LEFT

# In the place of `search.run`: a trial that imports no torch, and waits until it is asked to stop.
WAITING_TRIAL = """
import sys, time, types
def run_trial(*_, progress, **__):
    from search.trial import TrialOutcome
    print("it waits", flush=True)
    while not progress.should_stop():
        time.sleep(0.01)
    return TrialOutcome("CANCELLED", "user_cancel", "stopped")
sys.modules["search.run"] = types.ModuleType("search.run")
sys.modules["search.run"].run_trial = run_trial
"""
PATIENCE = 60.0
# A worker that has a trial, and says which processes are its own.
WORKER = """
import sys, time
from pathlib import Path
from worker.launching import Forking, Order
launcher = Forking({})
with Path(sys.argv[2]).open("wb") as log:
    process = launcher.launch(Order(sys.argv[1], 1, ""), log)
while not process.begun:
    process.wait(0.1)
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture
def injected(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The installation of a worker whose trials wait."""
    folder = tmp_path / "injected"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WAITING_TRIAL)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), str(Path.cwd()))))
    return settings


@pytest.fixture
def forking(injected: Settings) -> Iterator[Forking]:
    launcher = Forking({"OMP_NUM_THREADS": "1"})
    yield launcher
    launcher.close()


def launch(launcher: Launcher, claim: jobs.Claim, log: Path) -> TrialProcess:
    with log.open("wb") as output:
        return launcher.launch(Order(claim.trial_id, claim.attempt, ""), output)


def until_it_waits(process: TrialProcess, log: Path) -> None:
    while "it waits" not in log.read_text():
        assert process.wait(0.05) is None, log.read_text()


@pytest.mark.parametrize("launcher", [Anew({}), Forking({})], ids=["anew", "forked"])
def test_either_way_a_trial_runs_stops_when_asked_and_says_how_it_ended(
    injected: Settings, story: Story, tmp_path: Path, launcher: Launcher
) -> None:
    claim, log = story.begin(REFERENCE), tmp_path / "attempt.log"
    process = launch(launcher, claim, log)
    until_it_waits(process, log)
    assert process.begun
    process.send(signal.SIGTERM)
    assert process.wait(PATIENCE) == LEFT, log.read_text()
    assert "left with its checkpoint" in log.read_text()
    process.send(signal.SIGTERM)  # which hurts nobody
    story.release(claim)
    assert launch(launcher, claim, log).wait(PATIENCE) == 0
    assert "has been replaced" in log.read_text()
    launcher.close()


def test_trials_side_by_side_are_told_apart(
    forking: Forking, story: Story, settings: Settings, tmp_path: Path
) -> None:
    other = Story(story.database)
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    one, two = (
        launch(forking, told.begin(REFERENCE), log)
        for told, log in zip((story, other), logs, strict=True)
    )
    for process, log in zip((one, two), logs, strict=True):
        until_it_waits(process, log)
    one.send(signal.SIGKILL)
    assert one.wait(PATIENCE) == -signal.SIGKILL
    assert two.wait(0.2) is None
    two.send(signal.SIGTERM)
    assert two.wait(PATIENCE) == LEFT


def test_a_trial_that_has_not_begun_is_given_up_at_once(
    forking: Forking, story: Story, tmp_path: Path
) -> None:
    given_up = launch(forking, story.begin(REFERENCE), tmp_path / "given-up.log")
    given_up.send(signal.SIGKILL)
    assert given_up.wait(0.01) == -signal.SIGKILL
    log = tmp_path / "next.log"
    following = launch(forking, Story(story.database).begin(REFERENCE), log)
    until_it_waits(following, log)
    following.send(signal.SIGKILL)
    assert following.wait(PATIENCE) == -signal.SIGKILL
    assert not (tmp_path / "given-up.log").read_text().count("it waits")


def test_a_nursery_that_is_killed_takes_its_trial_along_and_another_is_started(
    forking: Forking, story: Story, tmp_path: Path
) -> None:
    forking.prepare()
    log = tmp_path / "attempt.log"
    lost = launch(forking, story.begin(REFERENCE), log)
    until_it_waits(lost, log)
    (nursery,) = nurseries(os.getpid())
    (trial,) = nursery.children()
    nursery.kill()
    assert lost.wait(PATIENCE) == -signal.SIGKILL
    psutil.wait_procs([trial], timeout=5)
    assert not trial.is_running()
    following = launch(forking, Story(story.database).begin(REFERENCE), log)
    until_it_waits(following, log)
    following.send(signal.SIGTERM)
    assert following.wait(PATIENCE) == LEFT


def test_neither_the_nursery_nor_a_trial_outlives_a_killed_worker(
    injected: Settings, story: Story, tmp_path: Path
) -> None:
    claim, log = story.begin(REFERENCE), tmp_path / "attempt.log"
    command = [sys.executable, "-c", WORKER, claim.trial_id, str(log)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"begun\n"
    started = psutil.Process(worker.pid).children(recursive=True)
    assert len(started) == 2
    worker.kill()
    worker.wait()
    worker.stdout.close()
    psutil.wait_procs(started, timeout=5)
    assert not [one for one in started if one.is_running()]


def nurseries(pid: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(pid).children() if "worker.nursery" in one.cmdline()]
