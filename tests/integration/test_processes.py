"""A search whose trials train on two processes each, of which one is killed."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.installation import Installation, children_of, kill_9

pytestmark = pytest.mark.timeout(600)

SPEC: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [16, 16]},
    "dataset": "digits",
    "budget": {"ratio": 0.5},
    "compute": {"trials": 1, "epochs": 60, "reference_epochs": 1, "processes": 2},
    "space": {"baselines": []},
}
CANDIDATE = 1


def test_a_killed_member_costs_the_attempt_and_not_the_trial(tmp_path: Path) -> None:
    with Installation(tmp_path / "home").running() as installed:
        worker = installed.start_worker()
        search_id = installed.submit(SPEC)

        def in_the_middle() -> bool:
            trial = installed.trial(search_id, CANDIDATE)
            assert trial["state"] in ("WAITING", "RUNNING"), f"too late\n{installed.logs()}"
            return trial["state"] == "RUNNING" and "validation_loss" in trial["latest"]

        installed.wait(in_the_middle)
        (leader,) = children_of(worker)
        (member,) = leader.children()
        kill_9(member)
        assert installed.wait_for_end(search_id)["state"] == "SUCCEEDED", installed.logs()
        told = installed.told_of(search_id, CANDIDATE)
        assert told == ["WAITING", "RUNNING", "LOST", "WAITING", "RUNNING", "COMPLETE"]
        attempts = installed.home / f"searches/{search_id}/trials/{CANDIDATE}"
        first, second = ((attempts / f"attempt-{n}.log").read_text() for n in (1, 2))
        assert "process 2 of 2 ended with -9" in first
        assert "going on from the files of attempt 1" in second
        report = installed.get(f"{search_id}/report")
        assert report["execution"]["processes"] == 2
        assert report["candidates"][0]["cost"] <= report["budget"]
