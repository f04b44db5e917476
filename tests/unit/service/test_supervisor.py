"""Real processes: started, restarted, stopped, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from service.supervisor import READY, CannotStart, is_loopback, listen, url_at, url_of
from tests.faults.stand_in import without_torch
from tests.serving import SPEC


@contextmanager
def command(home: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *words],
        env=os.environ | {"MATNAS_HOME": str(home), "PYTHONPATH": without_torch()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready_at(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith(READY), line
    return line.removeprefix(READY).strip()


def until(fact: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def children(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The service and the worker."""
    return psutil.Process(process.pid).children()


def all_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """These, and the worker's own."""
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not [one for one in processes if one.is_running() and one.status() != "zombie"]


def test_everything_starts_is_restarted_and_stops_without_orphans(tmp_path: Path) -> None:
    with command(tmp_path, "up", "--port", "0") as process:
        url = ready_at(process)
        assert httpx.get(f"{url}/healthz", trust_env=False).is_success
        before = children(process)
        assert len(before) == 2
        for child in before:  # the service keeps its port, whoever dies
            child.kill()
        until(lambda: len(children(process)) == 2 and not set(before) & set(children(process)))
        until(lambda: answers(url))
        after = all_of(process)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert time.monotonic() - began < 12
        assert gone(after)
        assert {path.name for path in (tmp_path / "logs").iterdir()} == {
            "service.log",
            "worker.log",
        }


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with command(tmp_path, "up", "--port", "0") as process:
        ready_at(process)
        until(lambda: len(all_of(process)) == 3)
        running = all_of(process)
        process.kill()
        until(lambda: gone(running), seconds=5)


def test_open_streams_do_not_keep_the_server(tmp_path: Path) -> None:
    with command(tmp_path, "up", "--port", "0") as process:
        url = ready_at(process)
        with httpx.Client(base_url=url, trust_env=False) as http:
            search_id = http.post("/searches", json=SPEC).json()["id"]
            with http.stream("GET", f"/searches/{search_id}/events") as stream:
                lines = stream.iter_lines()
                next(lines)
                (served,) = (child for child in children(process) if "serve" in child.cmdline())
                began = time.monotonic()
                served.terminate()
                for _ in lines:
                    pass
        assert time.monotonic() - began < 2


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False, timeout=1).is_success
    except httpx.TransportError:
        return False


def test_a_taken_port_is_a_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with command(tmp_path, "up", "--port", port) as process:
            _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert f"127.0.0.1:{port} cannot be used" in said
    assert "--port 0" in said
    assert "Traceback" not in said


def test_a_database_that_cannot_be_used_is_a_clear_line(tmp_path: Path) -> None:
    environment = os.environ | {"MATNAS_HOME": str(tmp_path), "MATNAS_DATABASE_URL": "nonsense://"}
    failed = subprocess.run(
        [sys.executable, "-m", "service.cli", "up", "--port", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("matnas: the database cannot be used")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "safe"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")),
    ],
)
def test_only_loopback_is_safe_without_keys(host: str, *, safe: bool) -> None:
    assert is_loopback(host) == safe
    if not safe:
        with pytest.raises(CannotStart, match="matnas keys create"):
            listen(host, 0, has_key=False)


def test_a_listener_knows_its_address() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")):
        with listen(host, 0, has_key=True) as listener:
            assert url_of(listener) == f"http://{shown}:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "http://localhost:80"),
        ("::1", "http://[::1]:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
    ],
)
def test_every_address_has_a_url(host: str, url: str) -> None:
    assert url_at(host, 80) == url
