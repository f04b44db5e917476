"""How a trial's process is started: forked from the nursery on Linux, elsewhere anew."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import BinaryIO, final

from service.settings import Settings

LONGEST_WORD = 64

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class Order:
    """Which attempt is to run, and in which trace."""

    trial_id: str
    attempt: int
    trace: str


class TrialProcess(ABC):
    """A process that runs one attempt."""

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether it is known to exist."""

    @abstractmethod
    def wait(self, seconds: float) -> int | None:
        """Return its exit status, negative for a signal, or None if it has not ended by then."""

    @abstractmethod
    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended; one that has not begun is given up by SIGKILL."""


class Launcher(ABC):
    """Starts the processes of trials, with the environment that torch reads when it is imported."""

    @abstractmethod
    def prepare(self) -> None:
        """Get ready for the first."""

    @abstractmethod
    def launch(self, order: Order, output: BinaryIO) -> TrialProcess:
        """Start one that logs to `output`; raises OSError where there is none to be had."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing behind."""


def make_launcher(settings: Settings) -> Launcher:
    """The quickest way that this system has."""
    environment = {
        # Idle threads that spin cost a busy neighbour nine tenths of its speed.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(settings.trial_threads),
    }
    return Forking(environment) if sys.platform == "linux" else Anew(environment)


@final
class Forking(Launcher):
    """Sends orders to a nursery, and starts another if it is gone."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._lock = Lock()
        self._orders: socket.socket | None = None
        self._keeper: Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Start a nursery, which imports while nobody waits."""
        with self._lock:
            self._nursery()

    def launch(self, order: Order, output: BinaryIO) -> TrialProcess:
        """Have it forked, as soon as all is imported."""
        text = json.dumps(
            {"trial": order.trial_id, "attempt": str(order.attempt), "trace": order.trace}
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            given = [output.fileno(), theirs.fileno()]
            try:
                socket.send_fds(self._nursery(), [text.encode()], given)
            except (BrokenPipeError, ConnectionResetError):
                self._hang_up()  # it has just ended
                socket.send_fds(self._nursery(), [text.encode()], given)
        return Forked(ours)

    def close(self) -> None:
        """End the nursery, which may be importing still."""
        with self._lock:
            self._hang_up()
        if self._process is not None:
            self._process.kill()
        if self._keeper is not None:
            self._keeper.join()

    def _nursery(self) -> socket.socket:
        alive = self._keeper is not None and self._keeper.is_alive()
        if self._orders is not None and alive:
            return self._orders
        self._hang_up()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        started: list[OSError] = []
        known = Event()

        def keep() -> None:
            # A process that is to die with its parent dies with the thread that started it. This
            # thread is the nursery's alone, and lives as long as it does.
            with theirs:
                try:
                    process = self._process = subprocess.Popen(  # noqa: S603
                        [sys.executable, "-m", "worker.nursery", str(os.getpid())],
                        env=os.environ | self._environment,
                        stdin=theirs.fileno(),
                    )
                except OSError as error:
                    started.append(error)
                    return
                finally:
                    known.set()
            code = process.wait()
            if self._orders is ours:
                log.warning("the process that trials are forked from ended with %d", code)

        self._keeper = Thread(target=keep, name="nursery", daemon=True)
        self._keeper.start()
        known.wait()
        if started:
            ours.close()
            raise started[0]
        self._orders = ours
        return ours

    def _hang_up(self) -> None:
        orders, self._orders = self._orders, None
        if orders is not None:
            orders.close()


@final
class Forked(TrialProcess):
    """A child of the nursery, spoken of and to over a socket of its own."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self._begun = False
        self._status: int | None = None

    @property
    def begun(self) -> bool:
        """Whether the nursery has told of it."""
        return self._begun

    def wait(self, seconds: float) -> int | None:
        """Read what the nursery tells; if it is gone, so is its child."""
        while self._status is None:
            self._told.settimeout(seconds)
            try:
                word = self._told.recv(LONGEST_WORD)
            except TimeoutError:
                return None
            except ConnectionResetError:
                continue  # it had ended before it read our signal: what it told is still there
            except OSError:  # we hung up
                word = b""
            if word == b"begun":
                self._begun = True
            else:
                self._status = int(word) if word else -signal.SIGKILL
                self._told.close()
        return self._status

    def send(self, number: signal.Signals) -> None:
        """Ask the nursery to pass it on."""
        try:
            if number == signal.SIGKILL and not self._begun:
                self._told.shutdown(socket.SHUT_RDWR)
            else:
                self._told.send(str(int(number)).encode())
        except OSError:
            pass  # it has ended


@final
class Anew(Launcher):
    """Starts Python for each trial, which imports all by itself."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def prepare(self) -> None:
        """There is nothing to be done ahead."""

    def launch(self, order: Order, output: BinaryIO) -> TrialProcess:
        """Start it now."""
        command = [sys.executable, "-m", "worker.trial", order.trial_id, str(order.attempt)]
        process = subprocess.Popen(  # noqa: S603  (our own module, and an id from our rows)
            [*command, str(os.getpid())],
            env=os.environ | self._environment | {"TRACEPARENT": order.trace},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        return Started(process)

    def close(self) -> None:
        """There is nothing."""


@final
class Started(TrialProcess):
    """A child of our own."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    @property
    def begun(self) -> bool:
        """From the first."""
        return True

    def wait(self, seconds: float) -> int | None:
        """Wait for it."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def send(self, number: signal.Signals) -> None:
        """Send it."""
        self._process.send_signal(number)
