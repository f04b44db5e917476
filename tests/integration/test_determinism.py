"""The same search finds the same, again and on however many workers."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.installation import Installation

pytestmark = pytest.mark.timeout(600)

# Two candidates at once, so that with two workers they end in an order of their own.
SPEC: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [16, 16]},
    "dataset": "digits",
    "budget": {"ratio": 0.4},
    "compute": {"trials": 3, "epochs": 4, "reference_epochs": 2, "parallel": 2},
    "space": {"baselines": ["allocated_low_rank"]},
}

TRIALS = 1 + 1 + 3  # that have a network: all but the measurement


def found_by(workers: int, home: Path) -> list[Any]:
    """Settings, network and numbers of every trial that trains."""
    with Installation(home).running() as installed:
        for _ in range(workers):
            installed.start_worker()
        search_id = installed.submit(SPEC)
        assert installed.wait_for_end(search_id)["state"] == "SUCCEEDED", installed.logs()
        trials = [installed.trial(search_id, number) for number in range(TRIALS)]
        structures = [
            installed.get(f"{search_id}/trials/{number}/structure")["network"]
            for number in range(TRIALS)
        ]
    return [
        (trial["settings"], trial["metrics"], network)
        for trial, network in zip(trials, structures, strict=True)
    ]


def test_one_worker_or_two_find_the_same_structures(tmp_path: Path) -> None:
    assert found_by(1, tmp_path / "one") == found_by(2, tmp_path / "two")


def test_the_same_search_submitted_again_deploys_the_same_forms(tmp_path: Path) -> None:
    # No candidates: every process that is started takes seconds.
    small = SPEC | {"compute": SPEC["compute"] | {"trials": 0}}
    rows, profiles = [], []
    with Installation(tmp_path / "home").running() as installed:
        installed.start_worker()
        for name in ("once", "again"):
            search_id = installed.submit(small | {"name": name})
            assert installed.wait_for_end(search_id)["state"] == "SUCCEEDED", installed.logs()
            rows += installed.get(f"{search_id}/report")["baselines"]
            profiles.append(installed.get(f"{search_id}/profile"))
    assert profiles[0] == profiles[1]
    assert profiles[0]["allocations"][0]["layers"][0]["layer"] == "layers.0"
    first, second = (row["forms"] for row in rows)
    assert first.keys() == {"layers.0", "layers.1"}
    assert first == second
