"""The parts of docker-compose.yml as processes of this machine: `make cluster`, until Ctrl-C.

A PostgreSQL and a Valkey of its own on free ports, the migration, the API and two workers; what
they kept is removed at the end, unless MATNAS_HOME names a folder.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from service.supervisor import dying_with_us
from tests.servers import Postgres, Valkey, free_port

READY = "the cluster answers at "
STOP_SECONDS = 60.0


@contextmanager
def cluster(home: Path, *, workers: int, port: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run everything for as long as the block lasts; gives the API and the workers."""
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        postgres, valkey = stack.enter_context(Postgres(())), stack.enter_context(Valkey())
        postgres.execute("CREATE DATABASE matnas")
        environment = os.environ | {
            "MATNAS_HOME": str(home),
            "MATNAS_DATABASE_URL": f"{postgres.url}/matnas",
            "MATNAS_BROKER_URL": valkey.url,
            "MATNAS_HEARTBEAT": str(home / "heartbeat"),
            "MATNAS_THREADS": str(max(1, (os.cpu_count() or 1) // workers)),
        }
        command = [sys.executable, "-m", "service.cli"]
        subprocess.run([*command, "db", "upgrade"], check=True, env=environment)
        named = {"api": ["serve", "--port", str(port)]}
        named |= {f"worker-{number + 1}": ["worker"] for number in range(workers)}
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for name, words in named.items():
                with (home / f"{name}.log").open("ab") as log:
                    process = subprocess.Popen(
                        [*command, *words],
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=dying_with_us(signal.SIGTERM),  # noqa: PLW1509  (one thread)
                    )
                processes.append(process)
            yield processes
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(STOP_SECONDS)


def wait_until_ready(url: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Until database, migrations, broker and workers are there, or a process has ended."""
    with httpx.Client(base_url=url, timeout=5, trust_env=False) as client:
        while all(process.poll() is None for process in processes):
            try:
                if client.get("/readyz").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
    raise SystemExit("a process has ended; its log says why")


def main() -> None:
    """Read the command line, and run until SIGINT or SIGTERM, or until a process ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=0, help="of the API; 0 takes a free one")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    port = options.port or free_port()
    with ExitStack() as stack:
        home = os.environ.get("MATNAS_HOME") or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="matnas-cluster-")
        )
        running = cluster(Path(home).resolve(), workers=options.workers, port=port)
        processes = stack.enter_context(running)
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, processes)
        print(f"{READY}{url}; its logs are in {home}", flush=True)  # noqa: T201
        while not stop.wait(0.5):
            for process in processes:
                if process.poll() is not None:
                    raise SystemExit(f"a process ended with {process.returncode}; see {home}")


if __name__ == "__main__":
    main()
