"""The nursery outlives whatever becomes of one trial, for all others would die with it."""

import subprocess
import sys

import pytest

# In a process of its own, for a nursery buries every child that there is.
BEGINNING = """
import os, signal, socket
from functools import partial
from worker.launching import Forked
from worker.nursery import Nursery
from worker.parent import die_with
def pair():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
def child():
    parent = os.getpid()
    number = os.fork()
    if number == 0:
        die_with(parent)
        signal.pause()
    return number
def entrust(nursery, number):
    worker, told = pair()
    nursery._trials[number] = told
    nursery._selector.register(told, 1, partial(nursery._pass_on, number))
    return worker, told
orders, theirs = pair()
nursery = Nursery(theirs)
number = child()
worker, told = entrust(nursery, number)
"""
WORD_FOR_THE_BURIED = """
signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
number = child()
worker, told = entrust(nursery, number)
os.kill(number, signal.SIGUSR1)
os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
worker.send(b"15")
nursery._bury()
nursery._pass_on(number)
assert Forked(worker).wait(1) == 7
"""
HUNG_UP_UNREAD = """
told.send(b"begun")
worker.close()
nursery._pass_on(number)
os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
nursery._bury()
assert not nursery._trials
"""
HUNG_UP_AT_THE_END = """
os.kill(number, signal.SIGKILL)
os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
told.send(b"begun")
worker.close()
nursery._bury()
assert not nursery._trials
"""
HUNG_UP_BEFORE_THE_BIRTH = """
worker.close()
os.kill(number, signal.SIGKILL)
worker, told = pair()
told.send(b"unread")
output = os.open(os.devnull, os.O_WRONLY)
socket.send_fds(orders, [b"{}"], [output, told.fileno()])
worker.close()
born = child()
nursery._fork = lambda *_: born
nursery._obey()
os.waitid(os.P_PID, born, os.WEXITED | os.WNOWAIT)
assert born not in nursery._trials
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each trial is started anew")
@pytest.mark.parametrize(
    "happens",
    [WORD_FOR_THE_BURIED, HUNG_UP_UNREAD, HUNG_UP_AT_THE_END, HUNG_UP_BEFORE_THE_BIRTH],
    ids=["word for the buried", "hung up unread", "hung up at the end", "hung up before birth"],
)
def test_a_trial_that_is_gone_or_a_worker_that_hung_up_ends_no_nursery(happens: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BEGINNING + happens],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
