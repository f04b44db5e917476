"""The tables of docs/benchmarks.md that are of whole searches, from the benchmarks' lines."""

from collections.abc import Iterator, Mapping

from benchmarks.frontier import CONTENDERS, DENSE, OURS
from benchmarks.markdown import Row, table

RIVALS = [name for name in CONTENDERS if name != OURS]


def frontier(line: Row) -> Iterator[str]:
    """Write a row for each network and budget: our loss, and by how much the rivals' are above."""
    yield table(
        ["network, share of the MACs", "dense", OURS, *(f"{name}, above ours" for name in RIVALS)],
        [
            [
                f"{cell['network']}, {cell['share']}",
                *(_level(cell["test_loss"][name]) for name in (DENSE, OURS)),
                *(_difference(cell["over_ours"][name]) for name in RIVALS),
            ]
            for cell in line["compared"]
        ],
    )


def _level(spread: Mapping[str, float | None]) -> str:
    return f"{spread['mean']:.4f}{_deviation(spread)}"


def _difference(spread: Mapping[str, float | None]) -> str:
    return f"{spread['mean']:+.4f}{_deviation(spread)}"


def _deviation(spread: Mapping[str, float | None]) -> str:
    deviation = spread["deviation"]
    return "" if deviation is None else f" ± {deviation:.4f}"


def recovery(line: Row) -> Iterator[str]:
    """Write a row for each matrix and budget: what was found, and the best single structure."""
    rows = line["rows"]
    within = sum(row["within_bar"] for row in rows)
    better = sum(row["better"] for row in rows)
    yield (
        f"{within} of {len(rows)} are within the bar, and {better} are better than every rival,\n"
        "or exact."
    )
    yield table(
        ["matrix, share of its MACs", "error", "best rival's", "found", "best rival"],
        [
            [
                f"{row['matrix']} {row['size']}, {row['share']}",
                f"{row['error']:.4g}",
                f"{row['rival_error']:.4g}",
                row["found"],
                row["rival"],
            ]
            for row in rows
        ],
    )


def step_cost(line: Row) -> Iterator[str]:
    """Write a row for each network and batch."""
    yield table(
        ["network, batch", "steps", "mean over mean", "median of pairs", "quartiles"],
        [
            [
                f"{cell['network']}, {cell['batch']}",
                cell["steps"],
                cell["mean_relaxed_over_mean_dense"],
                cell["median_of_pairs"][0],
                f"{cell['median_of_pairs'][1]} to {cell['median_of_pairs'][2]}",
            ]
            for cell in line["results"]
        ],
    )


def profile(line: Row) -> Iterator[str]:
    """Write a row for each part; the whole is measured apart from them."""
    yield table(
        ["part", "seconds", "CPU seconds"],
        [
            [part, f"{spent['seconds']:.2f}", f"{spent['cpu_seconds']:.2f}"]
            for part, spent in line["parts"].items()
        ],
    )


def memory(line: Row) -> Iterator[str]:
    """Write a row for each network, a column for each kind of trial."""
    found = line["memory"]
    heads = list(next(iter(found.values())))
    yield table(
        ["network", *(head.replace("_", " ") for head in heads)],
        [[name, *(row[head] for head in heads)] for name, row in found.items()],
    )


def facts(line: Row) -> Iterator[str]:
    """Write a row for each number that is of the whole benchmark."""
    known = ("benchmark", "processor", "cores", "threads", "python", "torch")
    yield table(
        ["measured", "value"],
        [[name.replace("_", " "), value] for name, value in line.items() if name not in known],
    )
