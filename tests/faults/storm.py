"""Searches under faults: `python -m tests.faults.storm` prints what was done as JSON.

Every search must succeed, with each trial counted once and the same numbers as one that nobody
disturbed.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.faults.stand_in import without_torch
from tests.faults.strikes import ALL, Missed, Scene
from tests.integration.installation import Installation
from tests.servers import Postgres, Valkey

SPEC: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [16, 16]},
    "dataset": "digits",
    "budget": {"ratio": 0.5},
    "compute": {"trials": 2, "epochs": 60, "reference_epochs": 4},
    "space": {"baselines": ["uniform_low_rank"]},
}
# Of three trials: to start the processes is most of what the short form takes.
SMALL = SPEC | {
    "compute": SPEC["compute"] | {"trials": 1},
    "space": {"baselines": []},
}
SETTINGS = {
    "MATNAS_LEASE_SECONDS": "10",
    "MATNAS_HINT_SECONDS": "3",
    # Here it is not the trials' fault that their processes die.
    "MATNAS_MAX_ATTEMPTS": "1000",
}
DATABASES = ("sqlite", "postgresql")
KILLS = 25
ROUNDS = 3
# In this order, so that a search or two see all of them.
QUICK = {
    "sqlite": ("kill_the_api", "send_twice", "kill_the_trial", "fill_the_disk"),
    "postgresql": (
        *("lose_messages", "restart_postgres", "kill_the_worker"),
        *("stop_beyond_the_lease", "stop_with_open_streams"),
    ),
}


def found_by(installed: Installation, search_id: str) -> Any:
    """What must not depend on what happened: the winner, and each trial's numbers and network."""
    report = installed.get(f"{search_id}/report")
    trials = []
    for number in range(installed.get(search_id)["progress"]["total"] - 1):
        trial = installed.trial(search_id, number)
        network = installed.get(f"{search_id}/trials/{number}/structure")["network"]
        trials.append((trial["settings"], trial["metrics"], network))
    return {"winner": report["winner"]["number"], "trials": trials}


def check(scene: Scene, expected: Any) -> list[dict[str, Any]]:
    """Each trial ended once, nothing finished was done again, the same was found."""
    scene.installed.wait(scene.ended)
    search = scene.installed.get(scene.search_id)
    assert search["state"] == "SUCCEEDED", (search, scene.installed.logs())
    events = scene.events()
    ends = Counter(
        event["trial_number"]
        for event in events
        if event["state"] in ("COMPLETE", "PRUNED", "FAILED", "CANCELLED")
        and event["trial_number"] is not None
    )
    assert ends == dict.fromkeys(range(search["progress"]["total"]), 1), ends
    failed = [event for event in events if event["state"] == "FAILED"]
    assert not failed, (failed, scene.installed.logs())
    done: set[int] = set()
    for event in events:
        assert event["trial_number"] not in done, f"after its end: {event}"
        if event["state"] in ("COMPLETE", "PRUNED"):
            done.add(event["trial_number"])
    if expected is not None:
        found = found_by(scene.installed, scene.search_id)
        assert json.dumps(found) == json.dumps(expected), (found, expected)
    return events


def strikes(database: str, chance: random.Random, *, quick: bool) -> Iterator[str]:
    """Name what is to happen, one after another."""
    if quick:
        yield from QUICK[database]
        return
    named = [name for name in ALL if not name.startswith("kill_the_")] * ROUNDS
    named += ["kill_the_api"] * ROUNDS
    named += ["kill_the_worker"] * KILLS + ["kill_the_trial"] * ROUNDS
    if database == "sqlite":
        named = [name for name in named if name != "restart_postgres"]
    chance.shuffle(named)
    yield from named


def storm(scene: Scene, names: Sequence[str], expected: Any) -> dict[str, Any]:
    """Let it all happen to searches, one after another, at moments that chance decides."""
    began, left, searches, events = time.monotonic(), list(names), 0, 0
    done, lost = Counter[str](), Counter[str]()
    while left or not searches:
        scene.search_id = scene.installed.submit(scene.spec)
        submitted = [scene.search_id]
        scene.wait_for_a_trial()
        while left and not scene.ended():
            scene.bide()
            name = left.pop(0)
            try:
                ALL[name](scene)
            except Missed:
                left.append(name)
                continue
            done[name] += 1
            print(len(names) - len(left), name, file=sys.stderr, flush=True)  # noqa: T201
            if scene.search_id not in submitted:
                submitted.append(scene.search_id)
        for search_id in submitted:
            scene.search_id = search_id
            told = check(scene, expected)
            events += len(told)
            lost.update(event["sentence"] for event in told if event["state"] == "LOST")
            searches += 1
    return {
        "searches": searches,
        "events": events,
        "strikes": dict(sorted(done.items())),
        "moments": dict(sorted(scene.moments.items())),
        "lost": dict(sorted(lost.items())),
        "seconds": round(time.monotonic() - began),
        "took": {what: [min(took), max(took)] for what, took in sorted(scene.seconds.items())},
    }


def undisturbed(installed: Installation, spec: Mapping[str, Any]) -> Any:
    """What a search finds that nothing happens to."""
    search_id = installed.submit(spec)
    check(Scene(installed, random.Random(0), search_id=search_id), None)
    return found_by(installed, search_id)


def run(
    home: Path,
    *,
    quick: bool,
    seed: int,
    stand_in: bool,
    databases: Sequence[str] = DATABASES,
    most: int | None = None,
) -> dict[str, Any]:
    """Both installations, each under its own storm; a stand-in trains nothing."""
    told: dict[str, Any] = {"seed": seed, "quick": quick, "stand_in": stand_in}
    expected, spec = None, SMALL if quick else SPEC
    for database in databases:
        chance = random.Random(f"{seed} {database}")
        with ExitStack() as stack:
            settings = dict(SETTINGS)
            if stand_in:
                settings["PYTHONPATH"] = without_torch()
            postgres = valkey = None
            if database == "postgresql":
                postgres, valkey = stack.enter_context(Postgres(())), stack.enter_context(Valkey())
                postgres.execute("CREATE DATABASE matnas")
                settings["MATNAS_DATABASE_URL"] = f"{postgres.url}/matnas"
                settings["MATNAS_BROKER_URL"] = valkey.url
            installed = stack.enter_context(Installation(home / database, **settings).running())
            installed.start_worker()
            if expected is None:
                expected = undisturbed(installed, spec)
            scene = Scene(installed, chance, postgres, valkey, spec=spec, thorough=not quick)
            names = list(strikes(database, chance, quick=quick))[:most]
            told[database] = storm(scene, names, expected)
    return told


def main() -> None:
    """Read the command line, let it storm, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each kind of fault once or so")
    parser.add_argument("--stand-in", action="store_true", help="trials that train nothing")
    parser.add_argument("--database", action="append", choices=DATABASES, help="only on this one")
    parser.add_argument("--most", type=int, help="end each storm after so many strikes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and their order")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="matnas-faults-") as home:
        told = run(
            Path(home),
            quick=options.quick,
            seed=options.seed,
            stand_in=options.stand_in,
            databases=options.database or DATABASES,
            most=options.most,
        )
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main()
