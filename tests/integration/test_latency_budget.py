"""A search whose budget is in time, by a real worker: within it, and the same again."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.installation import Installation

pytestmark = pytest.mark.timeout(600)

# Wide enough that low rank is faster than dense on any machine.
SPEC: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [512, 512]},
    "dataset": "digits",
    "budget": {"quantity": "latency", "ratio": 0.5},
    "compute": {"trials": 1, "epochs": 2, "reference_epochs": 1},
    "space": {
        "baselines": [],
        "structures": ["low rank"],
        "learner": {"structures": "rectangles"},
    },
}
TRIALS = range(2)  # that have a network: every process that is started takes seconds


def structures(installed: Installation, search_id: str) -> list[Any]:
    return [installed.get(f"{search_id}/trials/{number}/structure") for number in TRIALS]


def test_what_is_found_is_within_the_time_and_is_found_again(tmp_path: Path) -> None:
    with Installation(tmp_path / "home").running() as installed:
        installed.start_worker()
        found = []
        for name in ("once", "again"):
            search_id = installed.submit(SPEC | {"name": name})
            ended = installed.wait_for_end(search_id)
            assert ended["state"] == "SUCCEEDED", installed.logs()
            found.append(structures(installed, search_id))
        assert found[0] == found[1]
        dense, *others = found[1]
        assert dense["cost"] == dense["dense_cost"] == 1_000_000
        assert all(0 < one["cost"] <= 500_000 for one in others)
        layers = [layer for layer in others[0]["layers"] if layer["eligible"]]
        assert others[0]["cost"] == sum(layer["cost"] for layer in layers)
        assert [layer["cost"] for layer in others[0]["layers"] if not layer["eligible"]] == [None]
        report = installed.get(f"{search_id}/report")
        rows = [report["reference"], *report["baselines"], *report["candidates"]]
        assert [row["cost"] for row in rows] == [one["cost"] for one in found[1]]
        assert all(0 < row["predicted_latency_ratio"] <= 1 for row in rows)
        assert 0 < ended["smallest_cost"] < 500_000

        tight = installed.submit(SPEC | {"budget": {"quantity": "latency", "ratio": 1e-5}})
        refused = installed.wait_for_end(tight)
        assert (refused["state"], refused["reason"]) == ("FAILED", "budget_unreachable")
        assert "ask for more than that" in refused["sentence"]
        assert "training" not in installed.trial(tight, 0)["latest"]
