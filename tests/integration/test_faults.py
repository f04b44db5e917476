"""The storm of `make faults` in its short form, over trials that train nothing."""

from pathlib import Path

import pytest

from tests.faults.storm import QUICK, run

pytestmark = pytest.mark.timeout(900)


def test_whatever_happens_each_trial_counts_once_and_finds_the_same(tmp_path: Path) -> None:
    told = run(tmp_path, quick=True, seed=0, stand_in=True)
    for database, names in QUICK.items():
        assert told[database]["strikes"] == dict.fromkeys(names, 1)
