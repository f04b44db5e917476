"""A worker is known by what it holds: nobody waits for the lease of one that is gone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.settings import Settings
from tests.integration.story import REFERENCE, Story
from worker import identity
from worker.identity import is_gone, worker_name
from worker.recovery import sweep

NAME = """
import sys
from pathlib import Path
from worker.identity import worker_name
print(worker_name(Path(sys.argv[1])), flush=True)
input()
"""


@contextmanager
def other_worker(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", NAME, str(home)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


def test_a_worker_is_gone_as_soon_as_its_process_is(settings: Settings, story: Story) -> None:
    home = settings.home
    with other_worker(home) as (process, name):
        assert not is_gone(name, home)
        assert not is_gone(name, home), "to look changes nothing"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(name, home), "a zombie does nothing"
    assert is_gone(name, home)
    story.now = datetime.now(UTC)  # its lease is long
    story.begin(REFERENCE, name)
    sweep(settings, story.database)
    assert story.told_of(REFERENCE)[-2:] == ["LOST", "WAITING"]
    assert story.trial(REFERENCE).sentence == "its worker's process is gone"


def test_a_container_that_starts_again_has_another_name_than_it_had(tmp_path: Path) -> None:
    """By the same name of the machine, and as the same number: neither is what it is known by."""
    names = []
    for _ in range(2):
        worker_name.cache_clear()
        names.append(worker_name(tmp_path))
    first, second = names
    assert first.rsplit(".", 2)[0] == second.rsplit(".", 2)[0]
    assert first != second
    assert not is_gone(second, tmp_path)


def test_nothing_is_known_of_workers_elsewhere(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    with other_worker(elsewhere) as (process, name):
        process.kill()
        process.wait()
        assert is_gone(name, elsewhere)
        assert not is_gone(name, home), "of another home"
        assert not is_gone(name[:-8] + "0" * 8, elsewhere), "of another machine, or an earlier boot"
    assert not is_gone("one", home)


def test_where_nothing_can_be_locked_a_worker_has_a_name_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_boot", lambda: "0" * 8)
    (tmp_path / "workers").write_text("no folder")
    assert len(worker_name(tmp_path).split(".")) >= 2
    assert not is_gone(worker_name(tmp_path), tmp_path)


def test_what_the_long_gone_have_left_is_removed(tmp_path: Path) -> None:
    with other_worker(tmp_path) as (alive, _), other_worker(tmp_path) as (gone, _):
        gone.kill()
        gone.wait()
        left = list((tmp_path / "workers").iterdir())
        for path in left:
            os.utime(path, (0, 0))
        with other_worker(tmp_path) as (third, _):
            assert len(set((tmp_path / "workers").iterdir()) & set(left)) == 1
            third.kill()
        alive.kill()
