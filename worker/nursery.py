"""The process that trials' processes are forked from: all is imported in it, and nothing is begun.

`python -m worker.nursery PARENT`, started by the worker, which sends it an order for each trial. It
has one thread, makes no tensor and opens no database, so that what it forks is as good as new.
"""

import gc
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn, final

from worker.parent import die_with

# What every trial imports; what of torch it imports by itself later, at the first step of a
# training and for an export, which is imported as soon as no order waits.
AT_ONCE = ("worker.trial", "search.run")
LATER = ("search.sampling", "sqlalchemy.dialects.postgresql.psycopg")
LATER_OF_TORCH = ("torch._dynamo", "torch.export._trace", "torch._inductor.ir")
LONGEST_ORDER = 4096

log = logging.getLogger(__name__)


@final
class Nursery:
    """Forks a trial for each order, passes signals on, and tells how each ended."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._trials: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._ended, self._waker = socket.socketpair()
        for end in (self._ended, self._waker):
            os.set_blocking(end.fileno(), False)

    def run(self, later: list[str]) -> NoReturn:
        """Until the worker is gone; what is imported `later` keeps no order waiting."""
        signal.signal(signal.SIGCHLD, _take_note)
        signal.set_wakeup_fd(self._waker.fileno())
        self._selector.register(self._orders, selectors.EVENT_READ, self._obey)
        self._selector.register(self._ended, selectors.EVENT_READ, self._bury)
        while True:
            happened = self._selector.select(0 if later else None)
            for key, _ in happened:
                key.data()
            if not happened and later:
                _import(later.pop(0))

    def _obey(self) -> None:
        text, descriptors, _, _ = socket.recv_fds(self._orders, LONGEST_ORDER, 2)
        if not text:
            os._exit(0)  # the worker is gone, and the kernel ends our children with us
        output, connection = descriptors
        told = socket.socket(fileno=connection)
        try:
            number = self._fork(json.loads(text), output, told)
            told.send(b"begun")
            self._trials[number] = told
            self._selector.register(told, selectors.EVENT_READ, partial(self._pass_on, number))
        except ConnectionError:
            os.kill(number, signal.SIGKILL)  # nobody waits for it any more
        except OSError as error:
            log.warning("no process could be forked: %s", error)
            with suppress(ConnectionError):
                told.send(str(os.EX_OSERR).encode())
        finally:
            os.close(output)

    def _fork(self, order: dict[str, str], output: int, told: socket.socket) -> int:
        gc.freeze()  # or the first collection in each child would copy every page
        parent = os.getpid()
        number = os.fork()
        if number == 0:
            told.close()
            self._grow_up(order, output, parent)
        return number

    def _grow_up(self, order: dict[str, str], output: int, parent: int) -> NoReturn:
        """Be a process as `python -m worker.trial` would start it, and never return."""
        from worker.trial import run_and_leave  # noqa: PLC0415  (as early as all else)

        try:
            self._selector.close()
            signal.set_wakeup_fd(-1)
            for end in (self._orders, self._ended, self._waker, *self._trials.values()):
                end.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            os.close(output)
            os.environ["TRACEPARENT"] = order["trace"]
            # What was sent since the fork has waited: it ends the process, as it would a new one.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        except OSError:
            traceback.print_exc()
            os._exit(os.EX_OSERR)
        run_and_leave(order["trial"], int(order["attempt"]), parent)

    def _pass_on(self, number: int) -> None:
        """Send a child what the worker says; that it says nothing more is SIGKILL."""
        told = self._trials.get(number)
        if told is None:
            return  # it was buried since the selector told of the word
        try:
            word = told.recv(LONGEST_ORDER)
        except ConnectionError:  # the worker hung up before it had read all
            word = b""
        os.kill(number, int(word) if word else signal.SIGKILL)
        if not word:
            self._selector.unregister(told)

    def _bury(self) -> None:
        with suppress(BlockingIOError):
            while self._ended.recv(LONGEST_ORDER):
                pass
        with suppress(ChildProcessError):
            while True:
                number, status = os.waitpid(-1, os.WNOHANG)
                if not number:
                    return
                told = self._trials.pop(number, None)
                if told is not None:
                    with suppress(KeyError):
                        self._selector.unregister(told)
                    with suppress(ConnectionError):
                        told.send(str(os.waitstatus_to_exitcode(status)).encode())
                    told.close()


def main(parent: int) -> NoReturn:
    """Import what trials need, and serve the worker on standard input."""
    die_with(parent)
    # Whom a terminal or a service manager signals is the worker, which says what is to become of
    # its trials. Blocked, not ignored: a child must not miss what is sent to it at its birth.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders = socket.socket(fileno=os.dup(0))
    for name in AT_ONCE:
        _import(name)
    later = [*LATER, *(LATER_OF_TORCH if "torch" in sys.modules else ())]
    Nursery(orders).run(later)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception:
        # A trial that needs it says so itself, and ends for that reason.
        log.exception("%s cannot be imported", name)


def _take_note(_number: int, _frame: FrameType | None) -> None:
    """That there is a handler makes Python write to the wakeup descriptor."""


if __name__ == "__main__":
    main(int(sys.argv[1]))
