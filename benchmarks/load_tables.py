"""The tables of docs/benchmarks.md that are of the service: under load, and beside a trial."""

from collections.abc import Iterator
from functools import reduce

from benchmarks.markdown import Row, table

KINDS = {
    "status": "status of a search, 300 a second",
    "lists": "lists of searches, every filter and order",
    "compare": "2 to 8 searches side by side",
    "trials": "trials by every order, and curves",
    "submissions": "new searches, 50 a second",
}
CUTS = ("p50", "p95", "p99", "most")


def load(line: Row) -> Iterator[str]:
    """Write how late answers were, what became of the process, and how the others do."""
    yield table(
        ["asked for", "requests", "refused", *(f"{cut}, ms" for cut in CUTS)],
        [
            [words, *(line[kind][name] for name in ("requests", "refused", *CUTS))]
            for kind, words in KINDS.items()
        ],
    )
    kept, memory = line["submissions_kept"], line["resident_megabytes"]
    yield table(
        ["measured", "value"],
        [
            ["searches sent, in the database", f"{kept['sent']}, {kept['in_database']}"],
            ["lost, doubled", f"{kept['lost']}, {kept['doubled']}"],
            ["event streams open to the end", line["streams"]["open"]],
            ["seconds until /healthz answers", ", ".join(map(str, line["seconds_to_healthz"]))],
            *([f"resident megabytes, {when}", value] for when, value in memory.items()),
        ],
    )
    yield "### 8 clients, each asking again once it is answered; 10,000 trials"
    yield table(
        [
            "server",
            *(
                f"{what}, {cut}"
                for what in ("status", "trials")
                for cut in ("a second", "p50, ms", "p99, ms")
            ),
        ],
        [
            [
                name,
                *(
                    one[what][cut]
                    for what in ("status", "best")
                    for cut in ("a_second", "p50", "p99")
                ),
            ]
            for name, one in line["side_by_side"].items()
        ],
    )


INSTALLATIONS = {"embedded": "SQLite, folders", "servers": "PostgreSQL, Valkey"}
PARTS = {
    "waiting": "from the end of the trial before to the claim",
    "starting": "from there to the training",
    "finishing": "from the training to the end",
    "beside_training": "all three",
    "training": "the training, with whatever it imports",
}


def overhead(line: Row) -> Iterator[str]:
    """Write what a trial takes beside its training, and how soon a search stops."""
    heads = [
        f"{words}, {cut}" for words in INSTALLATIONS.values() for cut in ("median, s", "most, s")
    ]
    yield table(
        ["of 15 trials, one after another", *heads],
        [[words, *_spreads(line, "trials", part)] for part, words in PARTS.items()],
    )
    yield table(
        ["of 20 each, at random moments", *heads],
        [
            [f"{how}, until {words}", *_spreads(line, "stops", how, until)]
            for how in ("cancel", "pause", "kill")
            for until, words in (("state", "its state says so"), ("rest", "no process is left"))
        ],
    )
    took = line["import_torch"]["seconds"], line["import_all"]["seconds"]
    yield (
        f"To import torch takes {took[0]:.1f} s, and all that a trial needs {took[1]:.1f} s: the\n"
        "worker has done so before, once."
    )


def _spreads(line: Row, *path: str) -> Iterator[object]:
    for name in INSTALLATIONS:
        found = reduce(lambda inner, key: inner[key], path, line[name])
        yield from (found["median"], found["most"])
