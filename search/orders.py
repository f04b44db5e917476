"""What a process is told that shall take part in a trial's training, and how it is started."""

import os
import subprocess
import sys
from pathlib import Path

from models.frozen import Spec
from search.plan import PlannedTrial
from search.report import PLAIN, Execution
from search.spec import LearnerSettings, SearchSpec
from search.trial import FinishedTrial


class Orders(Spec):
    """A trial as `run_trial` was given it, of whose past only the reference is still needed."""

    spec: SearchSpec
    planned: PlannedTrial
    history: tuple[FinishedTrial, ...]
    settings: LearnerSettings | None
    uploads: Path
    fetched: Path
    folder: Path
    threads: int
    execution: Execution = PLAIN


def start(orders: Orders, rank: int, port: int) -> "subprocess.Popen[bytes]":
    """Start the process of a rank. It ends when it has done its part, or its input is closed."""
    # It shall find the packages that this process has found.
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(  # noqa: S603  (our own module, and numbers)
        [sys.executable, "-m", "search.member", str(rank), str(port)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            # Idle threads that spin cost a busy neighbour nine tenths of its speed.
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(orders.threads),
        },
        stdin=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(orders.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    return process
