"""MLflow's tracking server and optuna-dashboard, asked for what the service is asked for, too.

Each is one process on the same PostgreSQL, with one experiment or study of as many trials.
"""

import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg

from benchmarks.open_loop import Ask, beside, talking_to
from service.supervisor import dying_with_us
from tests.servers import free_port

PATIENCE_SECONDS = 180.0
CURVE = 6
# Both libraries' own ways to write 10,000 trials commit each of them by itself.
MLFLOW = """
import sys, uuid
from mlflow.store.tracking.dbmodels.models import (
    SqlLatestMetric, SqlMetric, SqlParam, SqlRun)
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
url, folder, trials, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = SqlAlchemyStore(url, folder)
experiment = store.create_experiment("load")
runs, metrics, latest, params = [], [], [], []
for number in range(trials):
    run, loss = uuid.UUID(int=number + 1).hex, 1 + (number * 7919 % trials) / trials
    runs.append(dict(
        run_uuid=run, name=f"candidate {number}", source_type="LOCAL", source_name="",
        entry_point_name="", user_id="load", status="FINISHED", start_time=10**12 + number,
        end_time=10**12 + number, source_version="", lifecycle_stage="active",
        artifact_uri=f"{folder}/{run}", experiment_id=int(experiment)))
    for name in ("training_loss", "validation_loss"):
        point = dict(key=name, timestamp=10**12, is_nan=False, run_uuid=run)
        metrics += [dict(point, step=step, value=loss / step) for step in range(1, steps + 1)]
        latest.append(dict(point, step=steps, value=loss / steps))
    params += [dict(key=f"p{i}", value=str(number * i), run_uuid=run) for i in range(7)]
with store.ManagedSessionMaker() as session:
    for table, rows in ((SqlRun, runs), (SqlMetric, metrics), (SqlLatestMetric, latest),
                        (SqlParam, params)):
        session.bulk_insert_mappings(table, rows)
"""
OPTUNA = """
import sys, optuna
from optuna.distributions import FloatDistribution
optuna.logging.set_verbosity(optuna.logging.ERROR)
url, trials, steps = sys.argv[1], int(sys.argv[3]), int(sys.argv[4])
study = optuna.create_study(study_name="load", storage=url)
space = {f"p{i}": FloatDistribution(0, 1) for i in range(7)}
study.add_trials([
    optuna.trial.create_trial(
        params={name: number / trials for name in space}, distributions=space,
        value=1 + (number * 7919 % trials) / trials,
        intermediate_values={step: 2 / step for step in range(1, steps + 1)})
    for number in range(trials)])
"""


def check(python: Path) -> None:
    """See at once whether all is there that they will need at the end."""
    subprocess.run([python, "-c", "import mlflow, optuna_dashboard, psycopg"], check=True)


def asked(
    python: Path, server: str, *, clients: int, seconds: float, trials: int
) -> dict[str, Any]:
    """Ask each for the status of something and for what its page of trials shows."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="matnas-rivals-") as folder:
        for name, script, runs in (
            ("mlflow", MLFLOW, _mlflow(trials)),
            ("optuna", OPTUNA, _optuna(trials)),
        ):
            url = _filled(server, f"{name}_{trials}", [python, "-c", script], folder, trials)
            port = free_port()
            command, version_of, asks = runs(python, url, port)
            with _serving(command, port, Path(folder)):
                _say(f"asking {name}")
                line = asyncio.run(_in_turn(port, asks, clients, seconds))
            found[f"{name} {_version(python, version_of)}"] = line
    return found


def _mlflow(trials: int) -> Callable[..., Any]:
    draw = random.Random(0)

    def status() -> Ask:
        run = f"{draw.randrange(trials) + 1:032x}"
        return Ask("GET", f"/api/2.0/mlflow/runs/get?run_id={run}")

    def best() -> Ask:
        body = {
            "experiment_ids": ["1"],
            "max_results": 50,
            "order_by": ["metrics.validation_loss ASC"],
        }
        return Ask("POST", "/api/2.0/mlflow/runs/search", body=body)

    def runs(python: Path, url: str, port: int) -> tuple[list[str], str, Any]:
        command = [str(python), "-m", "mlflow", "server", "--backend-store-uri", url]
        command += ["--workers", "1", "--port", str(port)]
        return command, "mlflow", {"status": status, "best": best}

    return runs


def _optuna(trials: int) -> Callable[..., Any]:
    def runs(python: Path, url: str, port: int) -> tuple[list[str], str, Any]:
        program = python.with_name("optuna-dashboard")
        command = [str(program), url, "--port", str(port), "--host", "127.0.0.1"]
        # Its page asks for what is newer than the trials that it has, and at first for all.
        new, whole = Ask("GET", f"/api/studies/1?after={trials}"), Ask("GET", "/api/studies/1")
        return command, "optuna-dashboard", {"status": lambda: new, "best": lambda: whole}

    return runs


async def _in_turn(
    port: int, asks: dict[str, Callable[[], Ask]], clients: int, seconds: float
) -> dict[str, Any]:
    async with talking_to(f"http://127.0.0.1:{port}") as session:
        return await beside(session, asks, clients=clients, seconds=seconds)


def _filled(
    server: str, database: str, script: Sequence[str | Path], folder: str, trials: int
) -> str:
    """Have a database written, unless there is one: under its name only once it is whole."""
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        named = "SELECT 1 FROM pg_database WHERE datname = %s"
        if not connection.execute(named, [database]).fetchone():
            _say(f"writing {trials} trials into {database}")
            connection.execute("DROP DATABASE IF EXISTS unfinished")
            connection.execute("CREATE DATABASE unfinished")
            arguments = [f"{server}/unfinished", folder, str(trials), str(CURVE)]
            subprocess.run([*script, *arguments], check=True)
            connection.execute(f"ALTER DATABASE unfinished RENAME TO {database}")
    return f"{server}/{database}"


@contextmanager
def _serving(command: Sequence[str], port: int, folder: Path) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            cwd=folder,
            start_new_session=True,
            preexec_fn=dying_with_us(signal.SIGTERM),  # noqa: PLW1509  (one thread)
        )
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                try:
                    if client.get("/", timeout=30).status_code < 500:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _version(python: Path, package: str) -> str:
    script = f"from importlib.metadata import version; print(version('{package}'))"
    done = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
