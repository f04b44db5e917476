"""What a second worker is worth: the same search on one worker and on two, through the service.

`python -m benchmarks.workers [--quick]` prints one JSON line. Each run is an installation of its
own, with a server and workers of one thread; all begin with the reference that an earlier search
has left in the cache. The seconds are the rows': from the request to the end of the search. All
takes about a quarter of an hour on two quiet cores.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import machine
from service import jobs
from service.client import ENDED
from service.db.migrations import upgrade
from service.db.session import Database, clock
from service.settings import Settings
from service.supervisor import Child, listen, url_of

# Eight candidates, of which two may run at once wherever they run, and four baselines. What only
# one worker does, the reference and the measurement, must be short beside the twelve.
SPEC: Mapping[str, Any] = {
    "model": {"kind": "vit", "patch": 7, "width": 192, "depth": 2, "heads": 4},
    "dataset": "mnist-5k",
    "budget": {"ratio": 0.15},
    "compute": {"trials": 8, "epochs": 16, "reference_epochs": 2, "parallel": 2},
    # Trials of all lengths would say how they happened to fit together.
    "sampler": {"pruner": "none"},
    "space": {
        "baselines": [
            *("dense_shrunk", "uniform_low_rank", "allocated_low_rank", "learned_low_rank")
        ]
    },
}
QUICK: Mapping[str, Any] = {
    "model": {"kind": "mlp", "hidden": [32, 32]},
    "dataset": "digits",
    "compute": {"trials": 3, "epochs": 4, "reference_epochs": 2, "parallel": 2},
    "space": {"baselines": ["uniform_low_rank"]},
}
TRAINED = ("baseline", "candidate")
STARTED = "import search.run, search.sampling"  # what every trial's process loads
PRODUCTS = """
import time, torch
torch.set_num_threads(1)
matrix = torch.randn(512, 512)
for _ in range(20): matrix @ matrix
begun = time.perf_counter()
for _ in range(400): matrix @ matrix
print(time.perf_counter() - begun)
"""
PATIENCE_SECONDS = 3600.0
READY_SECONDS = 60.0

Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Run:
    """One search: how long it took, when each trial ran, and what each has found."""

    workers: int
    seconds: float
    spans: Mapping[str, Sequence[Span]]  # by the trial's kind
    found: Sequence[tuple[object, ...]]


def main() -> None:
    """Run the search on one worker, on two, and on two again; print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a perceptron on digits, 4 trials")
    options = parser.parse_args()
    spec = dict(SPEC) | (dict(QUICK) if options.quick else {})
    with tempfile.TemporaryDirectory(prefix="matnas-workers-") as folder:
        home = Path(folder)
        bare = {"compute": spec["compute"] | {"trials": 0}, "space": {"baselines": []}}
        searched(spec | bare, home / "first", workers=1)
        runs = []
        for index, workers in enumerate((1, 2, 2)):
            own = home / f"run-{index}"
            shutil.copytree(home / "first" / "cache", own / "cache")
            runs.append(searched(spec, own, workers=workers))
            shutil.rmtree(own)
    line = told(runs, start=start_seconds()) | {"products_at_once": products_at_once()}
    print(json.dumps({"benchmark": "workers", **machine(), **line}))


def told(runs: Sequence[Run], *, start: float) -> dict[str, object]:
    """Compare the runs: two workers' seconds over one's, and whether all have found the same."""
    one = [run.seconds for run in runs if run.workers == 1]
    two = [run.seconds for run in runs if run.workers == 2]
    (first, *others) = runs
    lengths = [seconds for kind in TRAINED for seconds in _lengths(first, kind)]
    return {
        "trials": len(lengths),
        "seconds_one_worker": _rounded(one),
        "seconds_two_workers": _rounded(two),
        "ratio": round(statistics.mean(two) / statistics.mean(one), 3),
        "same_structures": all(run.found == first.found for run in others),
        "trial_seconds": round(statistics.median(lengths), 1),
        "start_seconds": round(start, 1),
        "reference_seconds": _rounded([sum(_lengths(run, "reference")) for run in runs]),
        "measurement_seconds": _rounded([sum(_lengths(run, "measurement")) for run in runs]),
        "idle": [round(idle(run), 3) for run in runs],
    }


def idle(run: Run) -> float:
    """Return the share of the workers' time without a trial, while trials train."""
    trained = [span for kind in TRAINED for span in run.spans.get(kind, ())]
    first, last = min(begun for begun, _ in trained), max(ended for _, ended in trained)
    busy = sum((ended - begun).total_seconds() for begun, ended in trained)
    return 1 - busy / (run.workers * (last - first).total_seconds())


def searched(spec: Mapping[str, Any], home: Path, *, workers: int) -> Run:
    """Run a search to its end in an installation of its own."""
    with installation(home, workers=workers) as (http, check):
        search = _json(http.post("/v1/searches", json=dict(spec)))
        link, until = f"/v1/searches/{search['id']}", time.monotonic() + PATIENCE_SECONDS
        while (search := _json(http.get(link)))["state"] not in ENDED:
            check()
            if time.monotonic() > until:
                raise SystemExit(f"the search is still {search['state']}")
            time.sleep(0.5)
        if search["state"] != "SUCCEEDED":
            raise SystemExit(f"the search ended {search['state']}: {search['sentence']}")
        trials = _json(http.get(f"{link}/trials?limit=200"))["items"]
        spans: dict[str, list[Span]] = {}
        for trial in trials:
            spans.setdefault(trial["kind"], []).append(_span(trial))
        return Run(workers, _seconds(search, "created_at"), spans, _found(http, link, trials))


@contextlib.contextmanager
def installation(
    home: Path, *, workers: int, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[httpx.Client, Callable[[], None]]]:
    """Run a server and workers; gives a client, and what ends all if one of them has ended."""
    home.mkdir(parents=True, exist_ok=True)
    given = dict(environment or {})
    settings = Settings(
        home=home, database_url=given.get("MATNAS_DATABASE_URL", ""), broker_url="filesystem://"
    )
    upgrade(settings.database)
    listener = listen("127.0.0.1", 0, has_key=False)
    environment = {
        "MATNAS_HOME": str(home),
        "MATNAS_DATABASE_URL": "",
        "MATNAS_BROKER_URL": "filesystem://",
        "MATNAS_THREADS": "1",
        "MATNAS_WORKER_CONCURRENCY": "1",
        **given,
    }
    command = [sys.executable, "-m", "service.cli"]
    serve = [*command, "serve", "--fd", str(listener.fileno())]
    log = home / "service.log"
    children = [Child("service", serve, log, environment, descriptors=(listener.fileno(),))]
    for index in range(workers):
        name = f"worker-{index + 1}"
        children.append(Child(name, [*command, "worker"], home / f"{name}.log", environment))

    def check() -> None:
        for child in children:
            if child.process is not None and child.process.poll() is not None:
                raise SystemExit(f"the {child.name} has ended:\n{child.log.read_text()[-2000:]}")

    try:
        for child in children:
            child.start()
        _wait_for_workers(settings, workers, check)
        with httpx.Client(base_url=url_of(listener), timeout=60, trust_env=False) as http:
            yield http, check
    finally:
        listener.close()
        for child in children:
            child.ask_to_end()
        deadline = time.monotonic() + 10
        for child in children:
            child.end(deadline)


def start_seconds() -> float:
    """Return what it takes to start a process that can run a trial: the least of three times."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", STARTED], check=True, env=environment)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def products_at_once() -> float:
    """Return how much longer a process multiplies beside another: 1 on two cores of its own.

    No search can gain more by a second worker than the machine does.
    """

    def begin() -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-c", PRODUCTS], stdout=subprocess.PIPE, text=True)

    def ended(processes: Sequence["subprocess.Popen[str]"]) -> float:
        return statistics.mean(float(process.communicate()[0]) for process in processes)

    alone = ended([begin()])
    return round(ended([begin(), begin()]) / alone, 2)


def _wait_for_workers(settings: Settings, workers: int, check: Callable[[], None]) -> None:
    database = Database(settings.database)
    until = time.monotonic() + READY_SECONDS
    while True:
        with database.read() as session:
            within = timedelta(seconds=READY_SECONDS)
            if jobs.living_workers(session, now=clock(session), within=within) >= workers:
                break
        check()
        if time.monotonic() > until:
            raise SystemExit(f"{workers} workers were asked for, and not all have come")
        time.sleep(0.1)
    database.dispose()


def _found(http: httpx.Client, link: str, trials: Sequence[Any]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for trial in trials:
        network = None
        if trial["state"] == "COMPLETE" and trial["kind"] in TRAINED:
            network = _json(http.get(f"{link}/trials/{trial['number']}/structure"))["network"]
        found.append((trial["name"], trial["state"], trial["settings"], network))
    return found


def _json(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise SystemExit(f"the service answered {answer.status_code}: {answer.text}")
    return answer.json()


def _span(row: Mapping[str, str]) -> Span:
    return datetime.fromisoformat(row["started_at"]), datetime.fromisoformat(row["ended_at"])


def _seconds(row: Mapping[str, str], since: str) -> float:
    passed = datetime.fromisoformat(row["ended_at"]) - datetime.fromisoformat(row[since])
    return passed.total_seconds()


def _lengths(run: Run, kind: str) -> list[float]:
    return [(ended - begun).total_seconds() for begun, ended in run.spans.get(kind, ())]


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(one, 1) for one in seconds]


if __name__ == "__main__":
    main()
