"""A worker whose clock is an hour off: PostgreSQL's own decides; SQLite has only its machine's."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.db.session import Database, clock
from tests.integration.story import BASELINES, REFERENCE, Story
from tests.shifted_clock import shifted

HOUR = 3600
# What a worker does of its own accord: it takes a trial, and looks for what others have left.
WORKER = """
import json, sys, time
from datetime import timedelta
from service import jobs
from service.db.session import Database, clock
from service.settings import get_settings
from worker.recovery import sweep

settings = get_settings()
database = Database(settings.database)
with database.write() as session:
    lease = timedelta(seconds=settings.lease_seconds)
    claim = jobs.claim(session, sys.argv[1], owner="off", now=clock(session), lease=lease)
sweep(settings, database)
print(json.dumps([time.time(), claim.lease_until.timestamp()]))
"""


def work(database: Database, home: Path, trial_id: str, *, hour: int) -> tuple[float, float]:
    """Have a worker work by its own clock; how far its time, and its lease, are from now."""
    environment = os.environ | {
        "MATNAS_HOME": str(home / "home"),
        "MATNAS_DATABASE_URL": database.engine.url.render_as_string(hide_password=False),
        **shifted(hour, home),
    }
    command = [sys.executable, "-c", WORKER, trial_id]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    found: list[Any] = json.loads(said)
    return found[0] - time.time(), found[1] - time.time()


@pytest.mark.parametrize("hour", [HOUR, -HOUR])
def test_a_worker_that_is_an_hour_off_takes_nothing_away(
    database: Database, tmp_path: Path, hour: int
) -> None:
    story = Story(database)
    with database.read() as session:
        story.now = clock(session)
    story.run(REFERENCE)
    story.begin(BASELINES[0], "right")
    ahead, lease = work(database, tmp_path, f"{story.id}-{BASELINES[1]}", hour=hour)
    assert ahead == pytest.approx(hour, abs=300)
    told = story.told_of(BASELINES[0])
    if database.engine.dialect.name == "postgresql":
        assert lease == pytest.approx(60, abs=300)
        assert told == ["WAITING", "RUNNING"]
    else:
        # There the workers share a machine and its clock. Where that jumps ahead, whatever runs is
        # put back once, and goes on from its checkpoint.
        assert lease == pytest.approx(hour + 60, abs=300)
        assert told == ["WAITING", "RUNNING", *(["LOST", "WAITING"] if hour > 0 else [])]


def test_a_hint_from_before_a_clock_was_set_back_is_sent_again(database: Database) -> None:
    story = Story(database)
    assert story.hints() == [REFERENCE]
    assert story.hints() == []
    story.now -= timedelta(hours=1)
    assert story.hints() == [REFERENCE]
