"""What a trial costs beside its training, and how soon a search stops: through the service.

`python -m benchmarks.overhead [--quick] [--only trials|stops] [--on embedded|servers] [--anew]`
prints one JSON line. A search of trials that train next to nothing runs on one worker; of each it
is measured how long it waited for the worker, from its claim to its training, and from there to
its end. Then searches of the demonstration's network are cancelled, paused and killed at random
moments, from the request to the state, and until no process of theirs is left. CPU seconds are
told too, which other work on the machine leaves alone. All this on the embedded default and on
PostgreSQL with Valkey, or on one of them; `--anew` has each trial's process import everything by
itself, as where there is no fork.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.machine import machine
from benchmarks.workers import installation
from service.client import ENDED
from tests.servers import Postgres, Valkey

SPEC: Mapping[str, Any] = {
    "model": {"kind": "mlp", "hidden": [8]},
    "dataset": "digits",
    "budget": {"ratio": 0.5},
    "compute": {"trials": 16, "epochs": 1, "reference_epochs": 1},
    "space": {"baselines": []},
}
DEMO = Path(__file__).parents[1] / "examples" / "mnist_vit.json"
# Whatever imports `search.run` or `worker.launching` in a process of the installation sees these.
INJECTED = """
import json, os, time
from importlib.machinery import PathFinder

def stamp(module):
    run = module.run_trial
    def run_trial(spec, planned, *given, **named):
        begun = [time.time(), time.process_time()]
        outcome = run(spec, planned, *given, **named)
        line = [planned.number, *begun, time.time(), time.process_time()]
        with open(os.environ["OVERHEAD_STAMPS"], "a") as stamps:
            stamps.write(json.dumps(line) + "\\n")
        return outcome
    module.run_trial = run_trial

def choose(module):
    if os.environ["OVERHEAD_ANEW"]:
        module.Forking = module.Anew

CHANGED = {"search.run": stamp, "worker.launching": choose}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name not in CHANGED:
            return None
        found = PathFinder.find_spec(name, path)
        execute = found.loader.exec_module
        def exec_module(module):
            execute(module)
            CHANGED[name](module)
        found.loader.exec_module = exec_module
        return found

import sys
sys.meta_path.insert(0, Finder())
"""
INSTALLATIONS = ("embedded", "servers")
HOW = {"cancel": "CANCELLED", "pause": "PAUSED", "kill": "CANCELLED"}
PATIENCE_SECONDS = 1800.0


def main() -> None:
    """Measure both, and print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few trials, and few stops")
    parser.add_argument("--only", choices=("trials", "stops"), help="one of the two")
    parser.add_argument("--on", choices=INSTALLATIONS, help="one of the two")
    parser.add_argument("--anew", action="store_true", help="import everything for each trial")
    options = parser.parse_args()
    trials, stops = (4, 2) if options.quick else (SPEC["compute"]["trials"], 20)
    line: dict[str, Any] = {"anew": options.anew, "load": os.getloadavg()[0]}
    if options.only != "stops":
        line["import_torch"] = seconds_of("import torch")
        line["import_all"] = seconds_of("import worker.trial, search.run, search.sampling")
    for name in [options.on] if options.on else INSTALLATIONS:
        with running(servers=name == "servers", anew=options.anew) as (http, check, stamps):
            line[name] = {}
            if options.only != "stops":
                line[name]["trials"] = overhead(http, check, stamps, trials=trials)
            if options.only != "trials":
                line[name]["stops"] = stopping(http, check, stops=stops)
    print(json.dumps({"benchmark": "overhead", **machine(), **line}))


@contextmanager
def running(
    *, servers: bool, anew: bool
) -> Iterator[tuple[httpx.Client, Callable[[], None], Path]]:
    """An installation with one worker, whose trials write down when they begin and end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="matnas-overhead-")))
        (folder / "sitecustomize.py").write_text(INJECTED)
        stamps = folder / "stamps"
        environment = {
            "PYTHONPATH": os.pathsep.join((str(folder), str(Path.cwd()))),
            "OVERHEAD_STAMPS": str(stamps),
            "OVERHEAD_ANEW": "1" if anew else "",
        }
        if servers:
            postgres, valkey = stack.enter_context(Postgres(())), stack.enter_context(Valkey())
            postgres.execute("CREATE DATABASE matnas")
            environment["MATNAS_DATABASE_URL"] = f"{postgres.url}/matnas"
            environment["MATNAS_BROKER_URL"] = valkey.url
        started = installation(folder / "home", workers=1, environment=environment)
        yield *stack.enter_context(started), stamps


def seconds_of(code: str) -> dict[str, float]:
    """What it takes to run a line of Python in a process of its own: the least of two times."""
    wall, cpu = [], []
    for _ in range(2):
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - began)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"seconds": round(min(wall), 2), "cpu": round(min(cpu), 2)}


def overhead(
    http: httpx.Client, check: Callable[[], None], stamps: Path, *, trials: int
) -> dict[str, dict[str, float]]:
    """Run the search, and split the time of each of its trials but the first."""
    spec = dict(SPEC) | {"compute": SPEC["compute"] | {"trials": trials}}
    link = submitted(http, spec)
    until(check, lambda: http.get(link).json()["state"] in ENDED)
    search = http.get(link).json()
    if search["state"] != "SUCCEEDED":
        raise SystemExit(f"the search ended {search['state']}: {search['sentence']}")
    rows = http.get(f"{link}/trials?limit=200").json()["items"]
    stamped = {line[0]: line[1:] for line in map(json.loads, stamps.read_text().splitlines())}
    parts: dict[str, list[float]] = {}
    ended = moment(search["created_at"])
    for row in rows:
        begun, begun_cpu, done, done_cpu = stamped[row["number"]]
        waiting, starting = moment(row["started_at"]) - ended, begun - moment(row["started_at"])
        ended = moment(row["ended_at"])
        split = {
            "waiting": waiting,
            "starting": starting,
            "training": done - begun,
            "finishing": ended - done,
            "beside_training": waiting + starting + ended - done,
            "starting_cpu": begun_cpu,
            "training_cpu": done_cpu - begun_cpu,
        }
        for name, seconds in split.items():
            parts.setdefault(name, []).append(seconds)
    first = {name: round(seconds[0], 3) for name, seconds in parts.items()}
    return {"first": first} | {name: spread(seconds[1:]) for name, seconds in parts.items()}


def stopping(
    http: httpx.Client, check: Callable[[], None], *, stops: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Stop searches of the demonstration's network at random moments of their first minute."""
    chance = random.Random(0)
    spec = json.loads(DEMO.read_text())
    # A reference of its own for each, or every search would begin where the first has come to.
    spec["compute"] |= {"reference_epochs": 4, "epochs": 1}
    told: dict[str, dict[str, list[float]]] = {how: {"state": [], "rest": []} for how in HOW}
    for number in range(stops):
        for how, state in HOW.items():
            link = submitted(http, spec | {"name": f"{how} {number}"})
            until(check, in_state(http, link, "RUNNING"))
            time.sleep(chance.uniform(0, 15))
            trials = running_trials()
            began = time.perf_counter()
            http.post(f"{link}/{how}").raise_for_status()
            until(check, in_state(http, link, state))
            told[how]["state"].append(time.perf_counter() - began)
            psutil.wait_procs(trials, timeout=PATIENCE_SECONDS)
            told[how]["rest"].append(time.perf_counter() - began)
            if how == "pause":
                http.post(f"{link}/cancel").raise_for_status()
    return {
        how: {name: spread(seconds) for name, seconds in kinds.items()}
        for how, kinds in told.items()
    }


def in_state(http: httpx.Client, link: str, state: str) -> Callable[[], bool]:
    """Whether a search is in a state by now."""
    return lambda: http.get(link).json()["state"] == state


def running_trials() -> list[psutil.Process]:
    """What trials run in: the nursery's children, or processes of their own."""
    named: dict[psutil.Process, str] = {}
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            named[one] = " ".join(one.cmdline())
    nurseries = {one.pid for one, words in named.items() if "worker.nursery" in words}
    forked = [one for one in named if one.pid in nurseries and one.ppid() in nurseries]
    return forked + [one for one, words in named.items() if "worker.trial" in words]


def submitted(http: httpx.Client, spec: Mapping[str, Any]) -> str:
    """Ask for a search; gives its link."""
    answer = http.post("/v1/searches", json=dict(spec))
    answer.raise_for_status()
    return f"/v1/searches/{answer.json()['id']}"


def until(check: Callable[[], None], fact: Callable[[], bool]) -> None:
    """Wait for something to become true, looking every hundredth of a second."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        check()
        if time.monotonic() > deadline:
            raise SystemExit("it takes too long")
        time.sleep(0.01)


def moment(text: str) -> float:
    """Seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the largest."""
    return {"median": round(statistics.median(seconds), 3), "most": round(max(seconds), 3)}


if __name__ == "__main__":
    main()
