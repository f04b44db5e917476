"""The demonstration: what it writes, and that it leaves nothing running, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from examples import demo
from service.client import Client
from tests.faults.stand_in import without_torch
from tests.serving import SPEC, Service, play, serving

ROW = {"name", "validation_loss", "test_accuracy", "macs", "parameters", "latency_ratio"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


def test_what_was_found_is_written(service: Service, tmp_path: Path) -> None:
    search_id = service.submit()
    play(service, search_id)
    with Client(service.url) as client:
        demo.keep(client, search_id, client.report(search_id), tmp_path)
        demo.show(client.report(search_id), Console(quiet=True), tmp_path)
    table = json.loads((tmp_path / "demo.json").read_text())
    assert table.keys() == {
        *("budget_macs", "eligible_dense_macs", "reference"),
        *("baselines", "best_candidate", "winner"),
    }
    assert {row["name"] for row in table["baselines"]} == {"uniform_low_rank", "block_diagonal"}
    for row in (table["reference"], table["best_candidate"], table["winner"], *table["baselines"]):
        assert row.keys() == ROW
    assert (tmp_path / "structure.svg").read_text().startswith("<svg")
    assert {path.name for path in (tmp_path / "network").iterdir()} == {
        "network.json",
        "network.safetensors",
    }


def test_a_search_that_does_not_succeed_fails_the_demonstration(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    monkeypatch.setattr(demo, "SPEC", tmp_path / "spec.json")

    def cancelled(client: Client, search_id: str, _: Console) -> object:
        return client.cancel(search_id)

    monkeypatch.setattr("service.terminal.watch", cancelled)
    with Client(service.url) as client, pytest.raises(demo.Failed, match="CANCELLED"):
        demo.run(client, Console(quiet=True), tmp_path)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """With SIGINT heard by child processes: a shell's background job passes on that it is not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_is_ended_nothing_is_left_running(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        env=os.environ | {"MATNAS_HOME": str(tmp_path), "PYTHONPATH": without_torch()},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("asked for"):
            break
    started: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(started) < 5:  # the supervisor, the service, the worker, its nursery, a trial
        assert time.monotonic() < deadline
        started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.wait(30)
    _, alive = psutil.wait_procs(started, timeout=15)
    assert alive == []
    assert process.returncode in (130, -signal.SIGKILL)
    process.stdout.close()
