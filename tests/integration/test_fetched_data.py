"""A text that is searched by a real worker, once it has been fetched and not before."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.installation import Installation
from tests.unit.search.builders import fetched_text

pytestmark = pytest.mark.timeout(600)  # each trial starts Python, and imports torch

SPEC: dict[str, Any] = {
    "model": {"kind": "gpt", "context": 16, "width": 16, "depth": 1, "heads": 2},
    "dataset": "state-of-the-union",
    "budget": {"ratio": 0.4},
    "training": {"batch": 16, "samples": 64},
    "compute": {"trials": 1, "epochs": 2, "reference_epochs": 2},
    "space": {"baselines": []},
}


def test_a_search_without_its_data_says_so_and_with_them_succeeds(tmp_path: Path) -> None:
    # A folder that the API does not see may be there for the workers: they find out.
    data = tmp_path / "data"
    with Installation(tmp_path / "home", MATNAS_DATA=str(data)).running() as installed:
        installed.start_worker()
        ended = installed.wait_for_end(installed.submit(SPEC))
        assert (ended["state"], ended["reason"]) == ("FAILED", "data_missing")
        assert "`make data` fetches it" in ended["sentence"]
        fetched_text(tmp_path).rename(data)
        search_id = installed.submit(SPEC)
        assert installed.wait_for_end(search_id)["state"] == "SUCCEEDED", installed.logs()
        assert "validation_accuracy" in installed.trial(search_id, 1)["latest"]
