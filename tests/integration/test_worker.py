"""Real searches by a real server and real workers, which are killed where it hurts most."""

import subprocess
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.integration.installation import Installation, children_of, kill_9

pytestmark = pytest.mark.timeout(600)  # each starts Python, and imports torch, a dozen times

# A search of four trials, whose candidate takes long enough to be killed in the middle of it.
SPEC: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [16, 16]},
    "dataset": "digits",
    "budget": {"ratio": 0.5},
    "compute": {"trials": 1, "epochs": 100, "reference_epochs": 2},
    "space": {"baselines": ["uniform_low_rank"]},
}
TRIALS, REFERENCE, CANDIDATE = range(4), 0, 2
# One whose reference takes longer than anybody waits for it.
ENDLESS = {**SPEC, "compute": {"reference_epochs": 100_000}}
# Soon over for a worker that is killed, but long enough to import torch on a busy machine.
LEASE_SECONDS = "15"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One for all tests: to start Python and to migrate takes longer than most of them."""
    home = tmp_path_factory.mktemp("installation") / "home"
    with Installation(home, MATNAS_LEASE_SECONDS=LEASE_SECONDS).running() as installed:
        yield installed


@pytest.fixture
def worker(installation: Installation) -> subprocess.Popen[bytes]:
    """One worker that runs and has nothing to do; those of other tests are gone."""
    return installation.one_worker()


@pytest.fixture(scope="module")
def undisturbed(installation: Installation) -> Any:
    """The structure that the candidate finds if nobody is killed."""
    installation.one_worker()
    search_id = installation.submit(SPEC)
    assert installation.wait_for_end(search_id)["state"] == "SUCCEEDED", installation.logs()
    assert all(
        installation.told_of(search_id, number) == ["WAITING", "RUNNING", "COMPLETE"]
        for number in TRIALS
    )
    return structure(installation, search_id)


def structure(installation: Installation, search_id: str) -> Any:
    return installation.get(f"{search_id}/trials/{CANDIDATE}/structure")["network"]


def test_what_trials_are_forked_from_has_begun_nothing(
    worker: subprocess.Popen[bytes], undisturbed: Any
) -> None:
    (nursery,) = psutil.Process(worker.pid).children()
    assert nursery.num_threads() == 1


def wait_for_the_middle(installation: Installation, search_id: str, number: int) -> None:
    """Until a trial has ended an epoch, and so has left a checkpoint, but is far from its end."""

    def reached() -> bool:
        trial = installation.trial(search_id, number)
        assert trial["state"] in ("WAITING", "RUNNING"), f"too late\n{installation.logs()}"
        return trial["state"] == "RUNNING" and "validation_loss" in trial["latest"]

    installation.wait(reached)


def check_that_all_was_counted_once(installation: Installation, search_id: str) -> None:
    assert installation.wait_for_end(search_id)["state"] == "SUCCEEDED", installation.logs()
    for number in TRIALS:
        told = installation.told_of(search_id, number)
        assert told.count("COMPLETE") == 1, installation.logs()
        retried = ["LOST", "WAITING", "RUNNING"] if number == CANDIDATE else []
        assert told == ["WAITING", "RUNNING", *retried, "COMPLETE"]
    assert installation.told_of(search_id, None) == ["QUEUED", "RUNNING", "SUCCEEDED"]
    log = installation.home / f"searches/{search_id}/trials/{CANDIDATE}/attempt-2.log"
    assert "going on from the files of attempt 1" in log.read_text()


def test_a_candidate_whose_process_is_killed_goes_on_from_its_checkpoint(
    installation: Installation, worker: subprocess.Popen[bytes], undisturbed: Any
) -> None:
    search_id = installation.submit(SPEC)
    wait_for_the_middle(installation, search_id, CANDIDATE)
    (child,) = children_of(worker)
    kill_9(child)
    check_that_all_was_counted_once(installation, search_id)
    assert structure(installation, search_id) == undisturbed


def test_a_worker_that_is_killed_takes_its_child_along_and_another_goes_on(
    installation: Installation, worker: subprocess.Popen[bytes], undisturbed: Any
) -> None:
    search_id = installation.submit(SPEC)
    wait_for_the_middle(installation, search_id, CANDIDATE)
    (child,) = children_of(worker)
    kill_9(worker)
    worker.wait()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running()
    installation.start_worker()
    check_that_all_was_counted_once(installation, search_id)
    assert structure(installation, search_id) == undisturbed


def test_a_worker_that_is_asked_to_stop_gives_its_trial_back_at_once(
    installation: Installation, worker: subprocess.Popen[bytes]
) -> None:
    search_id = installation.submit(ENDLESS)
    wait_for_the_middle(installation, search_id, REFERENCE)
    worker.terminate()
    worker.wait(20)
    assert installation.told_of(search_id, REFERENCE) == ["WAITING", "RUNNING", "WAITING"]
    assert installation.trial(search_id, REFERENCE)["reason"] == "worker_stopped"
    installation.cancel(search_id)  # or the next worker would go on with it
    assert installation.wait_for_end(search_id)["state"] == "CANCELLED"


def test_a_cancelled_search_stops_within_a_moment(
    installation: Installation, worker: subprocess.Popen[bytes]
) -> None:
    search_id = installation.submit(ENDLESS)
    wait_for_the_middle(installation, search_id, REFERENCE)
    installation.cancel(search_id)
    assert installation.wait_for_end(search_id)["state"] == "CANCELLED"
    assert installation.told_of(search_id, REFERENCE)[-1] == "CANCELLED"
    installation.wait(lambda: not children_of(worker))


def test_a_paused_search_goes_on_from_its_checkpoint_and_finds_the_same(
    installation: Installation, worker: subprocess.Popen[bytes], undisturbed: Any
) -> None:
    search_id = installation.submit(SPEC)
    wait_for_the_middle(installation, search_id, CANDIDATE)
    assert installation.tell(search_id, "pause")["state"] == "PAUSING"
    installation.wait(lambda: installation.get(search_id)["state"] == "PAUSED")
    assert not children_of(worker)
    trial = installation.trial(search_id, CANDIDATE)
    assert (trial["state"], trial["reason"], trial["losses"]) == ("WAITING", "user_pause", 0)
    assert installation.tell(search_id, "resume")["state"] == "QUEUED"
    assert installation.wait_for_end(search_id)["state"] == "SUCCEEDED", installation.logs()
    told = installation.told_of(search_id, CANDIDATE)
    assert told == ["WAITING", "RUNNING", "WAITING", "RUNNING", "COMPLETE"]
    assert structure(installation, search_id) == undisturbed


def test_a_killed_search_ends_the_process_even_of_a_trial_that_hears_nothing(
    installation: Installation, worker: subprocess.Popen[bytes]
) -> None:
    search_id = installation.submit(ENDLESS)
    wait_for_the_middle(installation, search_id, REFERENCE)
    (child,) = children_of(worker)
    child.suspend()  # as one that hangs
    assert installation.tell(search_id, "kill")["reason"] == "killed"
    ended = installation.wait_for_end(search_id)
    assert (ended["state"], ended["reason"]) == ("CANCELLED", "killed")
    assert not child.is_running()
    assert installation.trial(search_id, REFERENCE)["reason"] == "killed"
