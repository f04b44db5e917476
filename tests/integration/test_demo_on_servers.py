"""The demonstration's search on the servers of production, by two workers at once."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.installation import Installation

pytestmark = pytest.mark.timeout(600)  # each trial starts Python, and imports torch


def test_the_demo_runs_on_postgresql_and_valkey(
    tmp_path: Path, postgres_url: str, valkey_url: str
) -> None:
    spec = json.loads(Path("examples/mnist_vit.json").read_text())
    if not os.environ.get("FULL_PROOF"):  # which `make proof` sets, to run it whole
        spec["model"] |= {"depth": 1}
        spec["compute"] |= {"trials": 1, "epochs": 2, "reference_epochs": 1}
        spec["space"] = {"baselines": ["uniform_low_rank"]}
    servers = {"MATNAS_DATABASE_URL": postgres_url, "MATNAS_BROKER_URL": valkey_url}
    with Installation(tmp_path / "home", **servers).running() as installed:
        workers: list[subprocess.Popen[bytes]] = [installed.start_worker() for _ in range(2)]
        search_id = installed.submit(spec)
        assert installed.wait_for_end(search_id)["state"] == "SUCCEEDED", installed.logs()
        assert not (installed.home / "matnas.db").exists()
        assert not (installed.home / "broker").exists()
        for number in range(installed.get(search_id)["progress"]["total"]):
            told = installed.told_of(search_id, number)
            assert told[:2] == ["WAITING", "RUNNING"]
            assert told[2:] in (["COMPLETE"], ["PRUNED"])
        for worker in workers:
            worker.terminate()
            assert worker.wait(20) == 0
