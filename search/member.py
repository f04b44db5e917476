"""A process that takes part in a trial's training: `python -m search.member RANK PORT`."""

import os
import signal
import sys
import threading

from search.orders import Orders
from search.run import join_trial


def main(rank: int, port: int) -> None:
    """Read the orders from the standard input, and follow them while it is open."""
    # A terminal's Ctrl-C reaches this process too, but whoever started it decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders = Orders.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, name="input", daemon=True).start()
    join_trial(orders, rank=rank, port=port)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # All is done; to take torch apart in order would hold the trial up by a second.
    os._exit(0)
