"""The processes of one machine: started together, restarted when they die, ended together."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import final

import httpx

POLL_SECONDS = 0.1
READY_SECONDS = 60.0
GRACE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 30.0
# A process that has run this long was well; its next death is a first one.
WELL_SECONDS = 60.0
LARGEST_LOG_BYTES = 10_000_000
PR_SET_PDEATHSIG = 1
# The line that says that the service answers begins so, and ends with its address.
READY = "matnas is ready at "


@final
class CannotStart(Exception):
    """Why the service does not start, as a sentence."""


def listen(host: str, port: int, *, has_key: bool) -> socket.socket:
    """Bind the address that the service answers on; port 0 takes a free one.

    `has_key` says whether callers can prove who they are; without, only this machine may call.
    """
    if not has_key and not is_loopback(host):
        raise CannotStart(
            f"{host} can be reached from other machines, and there is no key yet: make one with "
            "`matnas keys create NAME --scope read --scope submit --scope admin`, or bind 127.0.0.1"
        )
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise CannotStart(f"{host} is no address of this machine") from error
    family, kind, protocol, _, where = address
    listener = socket.socket(family, kind, protocol)
    # Otherwise a restart has to wait until the kernel forgets the connections of the last run.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise CannotStart(
            f"{host}:{port} cannot be used ({os.strerror(error.errno or 0)}); "
            "choose another with --port, or --port 0 for a free one"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds what `listener` serves."""
    host, port = listener.getsockname()[:2]
    return url_at(host, port)


def url_at(host: str, port: int) -> str:
    """The address as a URL, by way of loopback where it stands for every address."""
    with contextlib.suppress(ValueError):
        if (address := ip_address(host)).is_unspecified:
            host = "::1" if address.version == 6 else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@final
@dataclass(slots=True)
class Child:
    """One process that is to be running; `failures` in a row make the pauses longer."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0.0
    due: float = field(default=0.0)

    def start(self) -> None:
        """Start the process in a session of its own, so that a Ctrl-C reaches only us."""
        if self.log.exists() and self.log.stat().st_size > LARGEST_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                pass_fds=self.descriptors,
                start_new_session=True,
                preexec_fn=dying_with_us(),  # noqa: PLW1509  (there is one thread)
            )
        self.started = time.monotonic()

    def tend(self) -> str:
        """Notice a death and, after a pause, start again; gives what there is to tell."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.due:
                self.start()
            return ""
        status = self.process.poll()
        if status is None:
            return ""
        self.failures = 1 if now - self.started > WELL_SECONDS else self.failures + 1
        pause = min(0.5 * 2**self.failures, LONGEST_PAUSE_SECONDS)
        self.process, self.due = None, now + pause
        return f"the {self.name} ended ({_ending(status)}); starting it again in {pause:.0f} s"

    def ask_to_end(self) -> None:
        """Ask the process, which passes it on to what it has started."""
        if self.process is not None:
            self.process.terminate()

    def end(self, deadline: float) -> None:
        """Wait until `deadline`, then kill what is left of the whole group."""
        if self.process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()
        self.process.wait()

    def kill(self) -> None:
        """End the whole group at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@final
class Supervisor:
    """The service and one worker, for as long as `run` runs."""

    def __init__(self, listener: socket.socket, *, home: Path, say: Callable[[str], None]) -> None:
        self._listener = listener
        self._say = say
        self._url = url_of(listener)
        self._stop = False
        logs = home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        descriptor = listener.fileno()
        environment = {"MATNAS_HOME": str(home.resolve())}
        serve = [sys.executable, "-m", "service.cli", "serve", "--fd", str(descriptor)]
        self._service = Child(
            "service", serve, logs / "service.log", environment, descriptors=(descriptor,)
        )
        worker = [sys.executable, "-m", "service.cli", "worker"]
        self._children = [
            self._service,
            Child("worker", worker, logs / "worker.log", environment),
        ]

    def run(self) -> None:
        """Keep everything running until SIGINT or SIGTERM; a second one kills at once."""
        with self._signals():
            try:
                for child in self._children:
                    child.start()
                if self._until_ready():
                    self._say(f"{READY}{self._url}")
                while not self._stop:
                    self._tend()
                    time.sleep(POLL_SECONDS)
            finally:
                self._end()

    def _until_ready(self) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        with httpx.Client(base_url=self._url, timeout=1.0, trust_env=False) as http:
            while not self._stop:
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/healthz").is_success:
                        return True
                self._tend()
                if self._service.failures > 1 or time.monotonic() > deadline:
                    last = "\n".join(_tail(self._service.log))
                    raise CannotStart(f"the service does not start; its log ends with\n{last}")
                time.sleep(POLL_SECONDS)
        return False

    def _tend(self) -> None:
        for child in self._children:
            if told := child.tend():
                self._say(told)

    def _end(self) -> None:
        self._listener.close()
        for child in self._children:
            child.ask_to_end()
        deadline = time.monotonic() + GRACE_SECONDS
        for child in self._children:
            child.end(deadline)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: object) -> None:
            if self._stop:
                for child in self._children:
                    child.kill()
            self._stop = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def dying_with_us(number: signal.Signals = signal.SIGKILL) -> Callable[[], None] | None:
    """Let the kernel send a child `number` when we die, however we die; only Linux can.

    It runs in the child before the program: whoever starts the child may have no other threads.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def ask_the_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # we died before the kernel was asked
            os.kill(os.getpid(), number)

    return ask_the_kernel


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def _tail(log: Path, lines: int = 5) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-lines:]
