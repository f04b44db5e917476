"""The tables of docs/benchmarks.md, from the JSON lines that the benchmarks print.

`python -m benchmarks.tables latency.json layers.json > docs/benchmarks.md`
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks import load_tables, search_tables
from benchmarks.markdown import Row, table


def latency(line: Row) -> Iterator[str]:
    """Write the extremes, then a table for each shape, share and dtype: rows are structures."""
    results: Sequence[Row] = line["results"]
    yield from _extremes(results)

    def place(row: Row) -> tuple[object, ...]:
        return row["dtype"], row["rows"], row["columns"], row["share"]

    for (dtype, rows, columns, share), group in groupby(sorted(results, key=place), key=place):
        cells = {(row["structure"], row["tokens"]): row for row in group}
        tokens = sorted({count for _, count in cells})
        yield f"### {rows} x {columns}, {dtype}, {share} of the MACs"
        yield table(
            [
                "structure",
                *(f"time / dense, {count} tok." for count in tokens),
                *(f"/ low rank, {count} tok." for count in tokens),
                *(f"deployed / dense, {count} tok." for count in tokens),
            ],
            [
                [
                    f"{name} ({cells[name, tokens[-1]]['in_words']})",
                    *(_spread(cells[name, count]["time_over_dense"]) for count in tokens),
                    *(_short(cells[name, count]["time_over_low_rank"][0]) for count in tokens),
                    *(_deployed(cells[name, count]) for count in tokens),
                ]
                for name in dict.fromkeys(name for name, _ in cells)
            ],
        )


def _extremes(results: Sequence[Row]) -> Iterator[str]:
    most = max(row["tokens"] for row in results)
    lines = []
    for name in dict.fromkeys(row["structure"] for row in results):
        own = [row for row in results if row["structure"] == name]
        large = [row for row in own if row["tokens"] == most]
        dense = sum(row["deployed_form"] == "dense" for row in own)
        lines.append(
            [
                name,
                *(
                    _range([row[field][0] for row in large if row["dtype"] == dtype])
                    for field in ("time_over_low_rank", "time_over_dense")
                    for dtype in ("float32", "bfloat16")
                ),
                f"{dense} of {len(own)}",
            ]
        )
    yield f"### All shapes and shares at {most} tokens: the least and the most"
    yield table(
        [
            "structure",
            "/ low rank, float32",
            "bfloat16",
            "/ dense, float32",
            "bfloat16",
            "deployed dense, all tokens",
        ],
        lines,
    )


def _range(values: Sequence[float]) -> str:
    return f"{_short(min(values))}-{_short(max(values))}" if values else ""


def layers(line: Row) -> Iterator[str]:
    """Write a table for each shape, ours before the rivals; then what curves of errors take."""

    def place(row: Row) -> tuple[int, int]:
        return row["rows"], row["columns"]

    for (rows, columns), group in groupby(line["results"], key=place):
        yield f"### {rows} x {columns}"
        yield table(
            [
                "layer",
                "numbers",
                "relative error",
                "seconds to make",
                "working memory, MB",
                "time / dense, 1 tok.",
                "64 tok.",
                "1576 tok.",
            ],
            [
                [
                    f"*{row['layer']}*" if row["rival"] else row["layer"],
                    f"{row['parameters']:,}",
                    f"{row['projection_error']:.4f}",
                    f"{row['projection_seconds']:.2f}",
                    f"{row['working_bytes'] / 1e6:.1f}",
                    *(_spread(row["time_over_dense"][count]) for count in ("1", "64", "1576")),
                ]
                for row in group
            ],
        )
    yield from _curves(line["error_curve_seconds"])


def _curves(seconds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    for shape, kinds in seconds.items():
        yield f"### Error curves of {shape}: seconds for all sizes at once"
        yield table(
            ["structure", *kinds],
            [
                [name, *(f"{kind[name]:.2f}" for kind in kinds.values())]
                for name in next(iter(kinds.values()))
            ],
        )


def _short(value: float) -> str:
    return f"{value:.2f}".lstrip("0") if value < 1 else f"{value:.2f}"


def _spread(three: Sequence[float]) -> str:
    median, lower, upper = map(_short, three)
    return f"{median} ({lower}-{upper})"


def _deployed(row: Row) -> str:
    return f"{_short(row['deployed_over_dense'][0])} {row['deployed_form']}"


OPENING = """# Benchmarks

Numbers of one machine; anyone can repeat them with the commands. `python -m
benchmarks.ablation` and `transfer` print a line too."""
SECTIONS: Mapping[str, tuple[str, str, Callable[[Row], Iterator[str]]]] = {
    "frontier": (
        "Found networks beside plain choices",
        """Test losses after one distilled epoch from the same trained reference, mean and standard
deviation over three seeds; of the rivals the difference to ours, paired by seed: above zero ours is
better. Every contender has the same epochs and two tuning trials, validation chooses, and the test
part is read once. Transformer and mixer on Fashion-MNIST, the character model on the State of the
Union.""",
        search_tables.frontier,
    ),
    "recovery": (
        "Planted matrices",
        """Relative squared errors of what a search finds of a matrix alone, and of the best single
structure of all kinds at the same cost, fitted from three starts to convergence. The bar is 1.02
times the best rival's, or 1e-3.""",
        search_tables.recovery,
    ),
    "step_cost": (
        "A step of learning over a dense step",
        """Of the whole phase, relaxed and dense taking turns; the first two steps left out.
Decisions that come a fixed number of times weigh more the shorter the phase: of 24 steps, the
transformer's mean at a batch of 64 was 3.8 to 4.3, for one step took 80 times as long as a dense
one. The character model's phases here were of 24 steps.""",
        search_tables.step_cost,
    ),
    "search_cost": (
        "A search over its epochs",
        """The demonstration's search, over the time that all its epochs would take were they the
dense network's.""",
        search_tables.facts,
    ),
    "workers": (
        "Two workers over one",
        """A search of 12 trials through the service, the reference in the cache, each worker with
one thread; two workers twice.""",
        search_tables.facts,
    ),
    "load": (
        "The service under load",
        """One API process on a PostgreSQL with 10,000 searches, a million trials and eleven million
points of curves, with 200 event streams open all the time. Requests are sent at random moments that
were fixed beforehand, and are timed from those moments. Beside it, on the same server, one process
of MLflow and one of optuna-dashboard: a run's status and the 50 best; what is new in a study, and
all of its trials, which is what its page asks for. Ours: the status of one search with 10,000
trials, and its 50 best. No keys, as on loopback. The rivals' rows here are of another run of the
day.""",
        load_tables.load,
    ),
    "overhead": (
        "A trial beside its training, and how soon a search stops",
        """Trials of a tiny network on one worker of one thread; stops of the demonstration's search
within its first 15 seconds, from the request on.""",
        load_tables.overhead,
    ),
    "profile": (
        "Profiling a transformer of 6 layers, 128 wide",
        """Second moments, curvatures, sensitivities, and the menus of every kind of the default
space.""",
        search_tables.profile,
    ),
    "training_memory": (
        "Memory of a trial over dense training",
        """Peaks above what the process holds before it trains.""",
        search_tables.memory,
    ),
    "latency": (
        "Latency of every structure",
        """Times over the dense layer's and over low rank's at the same share of the MACs: medians
of rounds in which each layer is called once, in parentheses the quartiles. The structured form
never builds the dense matrix; the deployed form is what a measurement chose beforehand, and may be
dense: then it is a copy of the dense layer, and what its ratio is off 1 is what another place in
memory alone does. Monarch with two square factors of 4 blocks is the BTT of 4 x 4 blocks at .5; at
rank 1 it takes dozens of narrow blocks to use up these shares.""",
        latency,
    ),
    "layers": (
        "Layers beside what a user would install instead",
        """The same matrix, with singular values i^-1/2 and random singular vectors, made into each
layer at the same share: ours of the dense MACs, with as many numbers or fewer, rivals of the dense
parameters. Rivals in italics.""",
        layers,
    ),
}


def section(path: Path) -> str:
    """Write what one file holds; ValueError, a sentence, where that is no benchmark's line."""
    try:
        line = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    name = str(line.get("benchmark")) if isinstance(line, dict) else ""
    if name not in SECTIONS:
        known = " and ".join(f"benchmarks.{known}" for known in SECTIONS)
        raise ValueError(f"{path} is not what one of {known} has printed")
    try:
        return "\n\n".join(_section(name, line))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a whole line of this version's benchmarks.{name}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _section(name: str, line: Row) -> Iterator[str]:
    title, words, write = SECTIONS[name]
    yield f"## {title}"
    yield words
    yield (
        f"`python -m benchmarks.{name}` on {line['processor']},\n"
        f"{line['cores']} cores, {line['threads']} thread(s), torch {line['torch']}."
    )
    yield from write(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page, or say which file is at fault and print nothing of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="each a benchmark's JSON line")
    try:
        sections = [section(path) for path in parser.parse_args(arguments).files]
    except ValueError as error:
        parser.error(str(error))
    print("\n\n".join((OPENING, *sections)), end="\n\n")


if __name__ == "__main__":
    main()
