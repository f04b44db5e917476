"""What a search finds beside four strong plain choices, over networks, budgets and seeds.

`python -m benchmarks.frontier [--quick]` prints one JSON line. Every contender trains for the same
epochs and has the same number of tuning trials, one for each learning rate; validation chooses
among these, and only the chosen network is tested. What was measured is kept in `--home`, so that
an interrupted run goes on where it was.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.trials import REFERENCE, run_alone
from models.checkpoint import load_network
from search.data import load_data
from search.plan import PlannedTrial
from search.spec import LearnerSettings, SearchSpec
from search.training import evaluate
from service.settings import Settings

CONTENDERS = {
    "matnas": PlannedTrial(1, "candidate"),
    "allocated low rank": PlannedTrial(2, "baseline", "allocated_low_rank"),
    "learned low rank": PlannedTrial(3, "baseline", "learned_low_rank"),
    "BLAST": PlannedTrial(4, "baseline", "blast"),
    "BTT": PlannedTrial(5, "baseline", "btt"),
}
OURS, DENSE = "matnas", "dense"
NAMES = (DENSE, *CONTENDERS)
SHARES = (0.3, 0.15, 0.07)
# Of the fine-tuning, the tuning trials: the two of 1e-3, 2e-3 and 4e-3 that suit the network's
# contenders best.
RATES = {"vit": (1e-3, 2e-3), "mixer": (2e-3, 4e-3), "gpt": (2e-3, 4e-3), "mlp": (2e-3, 4e-3)}
SEEDS = (0, 1, 2)
# The references train until about their least validation loss: one that is overfitted makes every
# cheaper network look better than it. One epoch of many samples says more than three of a third:
# what is made from a reference begins to overfit too.
NETWORKS: dict[str, dict[str, Any]] = {
    "vit": {
        "model": {"kind": "vit", "patch": 7, "width": 128, "depth": 4, "heads": 4},
        "dataset": "fashion-mnist",
        "training": {"samples": 30_000},
        "compute": {"reference_epochs": 5},
    },
    "mixer": {
        "model": {"kind": "mixer", "patch": 7, "width": 128, "depth": 4},
        "dataset": "fashion-mnist",
        "training": {"samples": 30_000},
        "compute": {"reference_epochs": 4},
    },
    "gpt": {
        "model": {"kind": "gpt", "context": 128, "width": 128, "depth": 4, "heads": 4},
        "dataset": "state-of-the-union",
        "training": {"samples": 6144},
        "compute": {"reference_epochs": 7},
    },
}
# Small enough for seconds; the data come with the packages.
QUICK: dict[str, dict[str, Any]] = {
    "mlp": {
        "model": {"kind": "mlp", "hidden": [64, 64]},
        "dataset": "digits",
        "training": {"learning_rate": 1e-2},
        "compute": {"reference_epochs": 10},
    }
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One network, budget and seed."""

    network: str
    share: float
    seed: int

    def spec(self, rate: float) -> SearchSpec:
        """What is asked for, with a learning rate for what is made from the reference."""
        fields = (NETWORKS | QUICK)[self.network]
        changes = {
            "training": {**fields["training"], "tuning_rate": rate},
            "compute": {"epochs": 1, "precision": "bfloat16", **fields["compute"]},
            "budget": {"ratio": self.share},
            "seed": self.seed,
        }
        return SearchSpec.model_validate(fields | changes)


def measured(cell: Cell, contender: str, home: Path, *, threads: int) -> dict[str, object]:
    """Tune one contender, and test the network that validation chooses; the reference as it is."""
    reference = _reference(cell, home, threads)
    if contender == DENSE:
        test, accuracy = _tested(cell, reference, home)
        return {
            **asdict(cell),
            "contender": DENSE,
            "test_loss": test,
            "test_accuracy": accuracy,
        }
    found = []
    for rate in RATES[cell.network]:
        place = home / "trials" / cell.network / f"{cell.share}-{cell.seed}-{contender}-{rate}"
        outcome = run_alone(
            *(cell.spec(rate), CONTENDERS[contender]),
            home=home,
            folder=place,
            reference=reference,
            settings=LearnerSettings() if contender == OURS else None,
            threads=threads,
            fetched=Settings().data_folder,
        )
        assert outcome.metrics is not None, "what completes has its metrics"
        found.append((outcome.metrics["validation_loss"], rate, place))
    validation, rate, place = min(found)
    test, accuracy = _tested(cell, place, home)
    return {
        **asdict(cell),
        "contender": contender,
        "rate": rate,
        "validation_losses": [loss for loss, *_ in found],
        "validation_loss": validation,
        "test_loss": test,
        "test_accuracy": accuracy,
    }


def _reference(cell: Cell, home: Path, threads: int) -> Path:
    """Train a seed's reference, or take it from the cache, and profile it for the cell's budget."""
    place = home / "references" / cell.network / f"{cell.share}-{cell.seed}"
    if not (place / "export").exists():
        run_alone(
            *(cell.spec(RATES[cell.network][0]), REFERENCE),
            home=home,
            folder=place,
            reference=place,
            threads=threads,
            fetched=Settings().data_folder,
        )
    return place


def _tested(cell: Cell, place: Path, home: Path) -> tuple[float, float | None]:
    data = load_data(cell.spec(RATES[cell.network][0]), home, Settings().data_folder)
    return evaluate(load_network(place / "export"), data, data.test)


def compared(rows: Sequence[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Mean test losses of every network and budget, and paired differences to ours over seeds."""
    known = {(row["network"], row["share"]) for row in rows}
    for network, share in (key for key in product((*NETWORKS, *QUICK), SHARES) if key in known):
        losses: dict[str, dict[object, float]] = {name: {} for name in NAMES}
        for row in rows:
            if (row["network"], row["share"]) == (network, share):
                losses[str(row["contender"])][row["seed"]] = float(str(row["test_loss"]))
        ours = losses[OURS]
        yield {
            "network": network,
            "share": share,
            "test_loss": {name: _spread(list(found.values())) for name, found in losses.items()},
            "over_ours": {
                name: _spread([found[seed] - ours[seed] for seed in found])
                for name, found in losses.items()
                if name != OURS
            },
        }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation}


def main() -> None:
    """Measure every cell that is not known yet, and print them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a perceptron on digits, one seed")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--home", type=Path, default=Path(".matnas/benchmarks/frontier"))
    options = parser.parse_args()
    networks = list(QUICK) if options.quick else options.networks
    seeds = SEEDS[:1] if options.quick else options.seeds
    shares = SHARES[:1] if options.quick else SHARES
    home: Path = options.home / ("quick" if options.quick else "full")
    home.mkdir(parents=True, exist_ok=True)
    kept = home / "measured.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["network"], row["share"], row["seed"], row["contender"]) for row in rows}
    # A seed is whole before the next begins: an interrupted run still compares like with like.
    for seed in seeds:
        for network in networks:
            for share in shares:
                for contender in NAMES:
                    if (network, share, seed, contender) in done:
                        continue
                    cell = Cell(network, share, seed)
                    rows.append(measured(cell, contender, home, threads=options.threads))
                    with kept.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(
        json.dumps(
            {
                "benchmark": "frontier",
                **machine(),
                "compared": list(compared(rows)),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
