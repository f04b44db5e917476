"""A whole installation of a test's own: the server and its workers as processes, over HTTP."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import httpx
import psutil

from tests.servers import free_port

# On a busy machine, to start Python and torch once takes minutes.
PATIENCE_SECONDS = 1200.0
STOP_SECONDS = 300.0


@final
class Installation:
    """One home, one database and one broker."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.url = f"http://127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "MATNAS_HOME": str(home),
            "MATNAS_REAP_SECONDS": "0.5",
            "MATNAS_HINT_SECONDS": "5",
            "MATNAS_THREADS": "1",
            **settings,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._client = httpx.Client(
            base_url=self.url, timeout=30, headers={"accept": "application/json"}
        )

    @contextmanager
    def running(self) -> Iterator["Installation"]:
        """Migrate and serve; at the end nothing is left."""
        self.home.mkdir(parents=True)
        try:
            migrated = [sys.executable, "-m", "service.cli", "db", "upgrade"]
            subprocess.run(migrated, check=True, env=self.environment)
            self._server = self._serve()
            yield self
        finally:
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
                    process.kill()
                process.wait()
            self._client.close()

    def restart_api(self, program: str = "") -> float:
        """Stop the server if it runs, serve again, by `program`; say how long it took to end."""
        began = time.monotonic()
        self._server.terminate()
        self._server.wait(STOP_SECONDS)
        took = time.monotonic() - began
        self._server = self._serve(program)
        return took

    def run(self, *command: str) -> None:
        """Run Python in this installation."""
        subprocess.run([sys.executable, *command], check=True, env=self.environment)

    def start_worker(self, **environment: str) -> subprocess.Popen[bytes]:
        worker = self._start("worker", "-m", "service.cli", "worker", environment=environment)
        self._workers.append(worker)
        return worker

    def one_worker(self) -> subprocess.Popen[bytes]:
        """Return the one worker that runs, after a start if there is none or are several."""
        running = [worker for worker in self._workers if worker.poll() is None]
        if len(running) == 1:
            return running[0]
        for worker in running:
            worker.terminate()
            worker.wait(STOP_SECONDS)
        return self.start_worker()

    def submit(self, spec: Mapping[str, Any]) -> str:
        answer = self._client.post("/v1/searches", json=spec)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def cancel(self, search_id: str) -> None:
        self.tell(search_id, "cancel")

    def tell(self, search_id: str, how: str) -> Any:
        answer = self._client.post(f"/v1/searches/{search_id}/{how}")
        assert answer.status_code == 202, f"{answer.text}\n{self.logs()}"
        return answer.json()

    def searches(self) -> Any:
        """The newest of all searches."""
        answer = self._client.get("/v1/searches?limit=100")
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    def worker_names(self) -> set[str]:
        """Whoever has said today that it lives."""
        answer = self._client.get("/v1/workers")
        assert answer.status_code == 200, answer.text
        return {worker["name"] for worker in answer.json()["items"]}

    def get(self, path: str) -> Any:
        answer = self._client.get(f"/v1/searches/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def trial(self, search_id: str, number: int) -> Any:
        return self.get(f"{search_id}/trials/{number}")

    def told_of(self, search_id: str, number: int | None) -> list[str]:
        events = self.get(f"{search_id}/events?after=0&limit=200")["items"]
        return [event["state"] for event in events if event["trial_number"] == number]

    def wait_for_end(self, search_id: str) -> Any:
        self.wait(lambda: self.get(search_id)["ended_at"] is not None)
        return self.get(search_id)

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < until, self.logs()
            time.sleep(0.2)  # a trial speaks once a second

    def logs(self) -> str:
        """What its processes had to say."""
        paths = sorted(self.home.glob("*.log")) + sorted(self.home.rglob("attempt-*.log"))
        return "\n".join(f"--- {path}\n{path.read_text()[-1500:]}" for path in paths)

    def _serve(self, program: str = "") -> subprocess.Popen[bytes]:
        how = ("-c", program) if program else ("-m", "service.cli")
        server = self._start("server", *how, "serve", "--port", self.url.rpartition(":")[2])
        self.wait(self._answers)
        return server

    def _start(
        self, name: str, *command: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        added = dict(environment or {})
        with (self.home / f"{name}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=self.environment | added,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def _answers(self) -> bool:
        try:
            return self._client.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False


def children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that run trials for a worker."""
    nurseries = psutil.Process(process.pid).children()
    return [trial for nursery in nurseries for trial in nursery.children()]


def kill_9(process: psutil.Process | subprocess.Popen[bytes]) -> None:
    """End a process as the kernel would for want of memory."""
    os.kill(process.pid, signal.SIGKILL)
