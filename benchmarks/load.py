"""How the service bears up: one API process on a seeded PostgreSQL, asked by many at once.

`python -m benchmarks.load --home FOLDER [--rivals-python PATH]` prints one JSON line. The folder is
what `benchmarks.seed_database --home` has filled; what is submitted here is removed from it again.
Requests are sent at random moments that were fixed beforehand, and are timed from those moments;
meanwhile the progress of the trials that run is written, as by workers.
With a Python that has mlflow, optuna-dashboard and psycopg, these are asked beside us; their
10,000 trials stay in the folder, too. `--quick` needs no folder: it seeds some dozens of searches.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final, get_args
from uuid import uuid4

import aiohttp
import httpx
import psutil
import psycopg

from benchmarks import load_rivals
from benchmarks.open_loop import Answered, Ask, at_rate, beside, milliseconds, talking_to
from benchmarks.seed_database import QUICK, database, seed
from service.db.migrations import upgrade
from service.jobs import SearchSort
from service.supervisor import dying_with_us
from tests.servers import Valkey, free_port

SPEC: Mapping[str, Any] = {
    "model": {"kind": "mlp", "hidden": [64, 64]},
    "dataset": "digits",
    "budget": {"quantity": "macs", "ratio": 0.3},
    "compute": {"trials": 2, "epochs": 4},
}
POLLS_A_SECOND, LISTS_A_SECOND, SUBMISSIONS_A_SECOND = 300, 10, 50
# As clients do that have waited for too long: so many submissions are sent a second time.
REPEATED = 0.1
WARM_UP = 0.25  # of as many polls as are then timed
STREAMS = 200
CLIENTS = 8  # of each server side by side
STARTS = 3
# As workers would: the running trials of a live search end an epoch every five seconds.
EPOCH_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
LIVE = ("RUNNING", "PAUSED", "QUEUED")
# What is submitted here has a tag and keys that begin so.
OURS = "load-"


@final
@dataclass(frozen=True, slots=True)
class Seeded:
    """What there is to ask for."""

    searches: Sequence[str]
    live: Sequence[str]
    finished: Sequence[str]
    largest: str


@final
@dataclass(slots=True)
class Heard:
    """What the streams have told so far."""

    open: int = 0
    messages: int = 0
    ended: int = 0


def main() -> None:
    """Ask the service, ask the others, print the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="what benchmarks.seed_database has filled")
    parser.add_argument("--rivals-python", type=Path, help="has mlflow and optuna-dashboard")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each kind of request")
    parser.add_argument("--quick", action="store_true", help="two seconds each, on a small seed")
    options = parser.parse_args()
    if options.home is None and not options.quick:
        parser.error("give --home, or --quick")
    if options.rivals_python is not None:
        load_rivals.check(options.rivals_python)
    seconds = 2.0 if options.quick else options.seconds
    with ExitStack() as stack:
        home = options.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        new = not (home / "data").exists()
        url = stack.enter_context(database(None, home))
        if new:
            seed(url, QUICK)
        upgrade(url)
        line = asked(url, seconds=seconds)
        if options.rivals_python is None:
            print("no --rivals-python: nobody is asked beside us", file=sys.stderr)
        else:
            python, url = options.rivals_python, url.rpartition("/")[0]
            line["side_by_side"] |= load_rivals.asked(
                python,
                url,
                clients=CLIENTS,
                seconds=seconds,
                trials=50 if options.quick else 10_000,
            )
    from benchmarks.machine import machine  # noqa: PLC0415  (torch would be in memory all along)

    print(json.dumps({"benchmark": "load", **machine(), **line}))


def asked(url: str, *, seconds: float, starts: int = STARTS) -> dict[str, Any]:
    """Start one API process, put it under each kind of load, and see what it has become."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="matnas-load-")))
        valkey = stack.enter_context(Valkey())
        environment = os.environ | {
            "MATNAS_HOME": str(home),
            "MATNAS_DATABASE_URL": url,
            "MATNAS_BROKER_URL": valkey.url,
        }
        took = []
        for _ in range(starts - 1):
            with serving(home, environment) as (_, _, started):
                took.append(started)
        process, address, started = stack.enter_context(serving(home, environment))
        resident = {"started": megabytes(process)}
        remove(url, OURS)  # of a run that was interrupted
        seeded = look(url)
        run = f"{OURS}{uuid4().hex[:8]}"
        try:
            phases = asyncio.run(loaded(address, url, seeded, run, seconds, resident, process))
            kept = count(url, run, phases.pop("submitted"))
        finally:
            remove(url, run)
    return {
        "seconds_to_healthz": sorted([*took, started]),
        "resident_megabytes": resident,
        **phases,
        "submissions_kept": kept,
    }


@contextmanager
def serving(
    home: Path, environment: Mapping[str, str]
) -> Iterator[tuple[psutil.Process, str, float]]:
    """Run one API process; gives it, its address, and after how long it answered."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    with (home / "api.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--port", str(port)],
            env=dict(environment),
            stdout=log,
            stderr=log,
            preexec_fn=dying_with_us(signal.SIGTERM),  # noqa: PLW1509  (one thread)
        )
    try:
        with httpx.Client(base_url=address, trust_env=False) as client:
            while True:
                assert process.poll() is None, (home / "api.log").read_text()
                assert time.perf_counter() < began + PATIENCE_SECONDS, "the API does not answer"
                try:
                    if client.get("/healthz").is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.01)
        yield psutil.Process(process.pid), address, round(time.perf_counter() - began, 2)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def look(url: str) -> Seeded:
    """Choose what to ask for."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT id, state FROM searches ORDER BY created_at").fetchall()
        counted = "SELECT search_id FROM trials GROUP BY search_id ORDER BY count(*) DESC LIMIT 1"
        largest = connection.execute(counted).fetchone()
    assert largest is not None, "there is no trial"
    return Seeded(
        searches=[row[0] for row in rows],
        live=[row[0] for row in rows if row[1] in LIVE],
        finished=[row[0] for row in rows if row[1] == "SUCCEEDED"],
        largest=largest[0],
    )


async def loaded(
    address: str,
    url: str,
    seeded: Seeded,
    run: str,
    seconds: float,
    resident: dict[str, float],
    process: psutil.Process,
) -> dict[str, Any]:
    """Ask in every way, one after another, with all streams open all the time."""
    draw, heard = random.Random(0), Heard()
    async with talking_to(address) as session:
        beside_all = [
            asyncio.create_task(listen(session, seeded.live[n % len(seeded.live)], heard))
            for n in range(STREAMS)
        ]
        beside_all.append(asyncio.create_task(work(url, seeded.live)))
        await all_open(heard, beside_all)
        resident["streaming"] = megabytes(process)
        found: dict[str, Any] = {}
        # As where the server has been up for a while: connections are open, rows are in memory.
        warm = polls(seeded, draw, int(WARM_UP * POLLS_A_SECOND * seconds))
        await at_rate(session, warm, rate=POLLS_A_SECOND / 2, draw=draw)
        asks = polls(seeded, draw, int(POLLS_A_SECOND * seconds))
        begun, used = time.perf_counter(), sum(process.cpu_times()[:2])
        answers = await at_rate(session, asks, rate=POLLS_A_SECOND, draw=draw)
        share = (sum(process.cpu_times()[:2]) - used) / (time.perf_counter() - begun)
        found["status"] = milliseconds(answers) | {"cores_used": round(share, 2)}
        for name, made in (("lists", lists), ("compare", comparisons), ("trials", trials)):
            asks = made(seeded, draw, int(LISTS_A_SECOND * seconds))
            found[name] = milliseconds(await at_rate(session, asks, rate=LISTS_A_SECOND, draw=draw))
        asks = submissions(run, draw, int(SUBMISSIONS_A_SECOND * seconds))
        answers = await at_rate(session, asks, rate=SUBMISSIONS_A_SECOND, draw=draw)
        found["submissions"] = milliseconds(answers)
        found["submitted"] = taken(asks, answers)
        resident["loaded"] = megabytes(process)
        found["streams"] = {"open": STREAMS - heard.ended, "messages": heard.messages}
        for task in beside_all:
            task.cancel()
        for end in await asyncio.gather(*beside_all, return_exceptions=True):
            if isinstance(end, Exception):
                raise end
        here = f"/v1/searches/{seeded.largest}"
        best = Ask("GET", f"{here}/trials?limit=50&sort=validation_loss")
        both = {"status": lambda: Ask("GET", here), "best": lambda: best}
        ours = await beside(session, both, clients=CLIENTS, seconds=seconds)
        found["side_by_side"] = {"matnas": ours}
    return found


async def listen(session: aiohttp.ClientSession, search_id: str, heard: Heard) -> None:
    """Hear what becomes of a search, for as long as the server tells."""
    path, forever = f"/v1/searches/{search_id}/events", aiohttp.ClientTimeout(total=None)
    async with session.get(path, timeout=forever, headers={"Last-Event-ID": "0"}) as response:
        assert response.status == 200, response.status
        heard.open += 1
        async for text in response.content:
            heard.messages += text.startswith(b"data:")
    heard.ended += 1


async def all_open(heard: Heard, beside_all: Sequence[asyncio.Task[None]]) -> None:
    """Wait until every stream is open; raise what ends one of these tasks before."""
    while heard.open < STREAMS:
        done, _ = await asyncio.wait(beside_all, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
            raise RuntimeError(f"one ended when {heard.open} of {STREAMS} streams were open")


async def work(url: str, live: Sequence[str]) -> None:
    """Write what workers would: how far the running trials have come."""
    ended = "UPDATE trials SET done = done %% total + 1 WHERE search_id = %s AND state = 'RUNNING'"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for search_id in itertools.cycle(live):
            await connection.execute(ended, [search_id])
            await asyncio.sleep(EPOCH_SECONDS / len(live))


def polls(seeded: Seeded, draw: random.Random, number: int) -> list[Ask]:
    """Ask how searches are doing, live ones as often as all others."""
    return [
        Ask("GET", f"/v1/searches/{draw.choice(draw.choice((seeded.live, seeded.searches)))}")
        for _ in range(number)
    ]


def lists(_seeded: Seeded, _draw: random.Random, number: int) -> list[Ask]:
    """Every filter and every order."""
    queries = [
        *("", "state=RUNNING", "state=SUCCEEDED", "tag=paper", "model=vit", "dataset=digits"),
        *("name=search%2017", "created_after=2026-10-01T00:00:00Z", "loss_from=0.2&loss_to=0.3"),
        *(f"sort={name}" for name in get_args(SearchSort)),
        *("state=FAILED&sort=best_loss", "tag=draft&sort=-best_loss", "model=mlp&sort=name"),
    ]
    return [Ask("GET", f"/v1/searches?{queries[n % len(queries)]}") for n in range(number)]


def comparisons(seeded: Seeded, draw: random.Random, number: int) -> list[Ask]:
    """The best of 2 to 8 searches side by side."""
    chosen = [draw.sample(seeded.finished, draw.randint(2, 8)) for _ in range(number)]
    return [Ask("GET", f"/v1/compare?searches={','.join(ids)}") for ids in chosen]


def trials(seeded: Seeded, draw: random.Random, number: int) -> list[Ask]:
    """Trials of searches, of the largest among them, in several orders, and curves."""
    orders = ("number", "validation_loss", "-cost", "started_at", "latency_ratio")
    asks = []
    for n in range(number):
        one = f"/v1/searches/{draw.choice((draw.choice(seeded.searches), seeded.largest))}/trials"
        asks.append(Ask("GET", f"{one}?limit=50&sort={draw.choice(orders)}"))
        if n % 2:
            asks[-1] = Ask("GET", f"{one}/{draw.randrange(7)}/metrics")
    return asks


def submissions(run: str, draw: random.Random, number: int) -> list[Ask]:
    """New searches, each with a key of its own, and some of them sent twice."""
    asks = [
        Ask(
            "POST",
            "/v1/searches",
            (202,),
            {**SPEC, "tags": [run], "name": f"{run}-{n}"},
            (("Idempotency-Key", f"{run}-{n}"),),
        )
        for n in range(number)
    ]
    again = [n for n in range(number) if draw.random() < REPEATED]
    for place in reversed(again):
        # Whichever comes later is in conflict while the other is being answered.
        asks[place] = replace(asks[place], statuses=(202, 409))
        asks.insert(min(len(asks), place + SUBMISSIONS_A_SECOND), asks[place])
    return asks


def taken(asks: Sequence[Ask], answers: Sequence[Answered]) -> dict[str, set[str]]:
    """By name, the ids of the searches that were promised."""
    found: dict[str, set[str]] = {}
    for ask, answer in zip(asks, answers, strict=True):
        assert isinstance(ask.body, dict)
        ids = found.setdefault(ask.body["name"], set())
        if answer.refused is None and answer.body is not None:
            ids |= {told for told in [json.loads(answer.body).get("id")] if told}
    return found


def count(url: str, run: str, submitted: Mapping[str, set[str]]) -> dict[str, int]:
    """Compare what was promised with what is in the database."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT name, id FROM searches JOIN search_tags ON search_id = id WHERE tag = %s", [run]
        ).fetchall()
    there = {row[1] for row in rows}
    promised = {search_id for ids in submitted.values() for search_id in ids}
    return {
        "sent": len(submitted),
        "promised": len(promised),
        "in_database": len(rows),
        "lost": len(promised - there),
        "doubled": len(rows) - len({row[0] for row in rows}),
        "without_answer": sum(not ids for ids in submitted.values()),
    }


def remove(url: str, run: str) -> None:
    """Leave the database as it was found by the runs whose names begin so."""
    with psycopg.connect(url) as connection:
        tagged = "SELECT search_id FROM search_tags WHERE tag LIKE %s"
        connection.execute(f"DELETE FROM searches WHERE id IN ({tagged})", [f"{run}%"])
        connection.execute("DELETE FROM idempotency WHERE key LIKE %s", [f"{run}%"])


def megabytes(process: psutil.Process) -> float:
    """What a process holds in memory."""
    return round(process.memory_info().rss / 1e6, 1)


if __name__ == "__main__":
    main()
