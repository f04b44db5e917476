"""What a whole search takes beside the training that it does: the demonstration's, timed.

`python -m benchmarks.search_cost [--quick]` prints one JSON line. The bound is the time of all its
epochs, had every one been an epoch of the dense network; what is above it are profiling, learning
structures, evaluation and measurement.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from search.plan import planned_trials
from search.progress import Update
from search.run import run_search
from search.spec import SearchSpec

SPEC = Path(__file__).parents[1] / "examples" / "mnist_vit.json"


class EpochClock:
    """Progress that notes when each epoch of the reference was done."""

    def __init__(self) -> None:
        self.ended: list[float] = [time.perf_counter()]

    def report(self, update: Update) -> None:
        """Note the end of an epoch in which the dense network was trained."""
        if update.phase == "training" and "validation_loss" in update.metrics:
            self.ended.append(time.perf_counter())

    def should_stop(self) -> bool:
        """Never."""
        return False


def main() -> None:
    """Run the search in this process, and print its time over that of its epochs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a perceptron on digits")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    spec = SearchSpec.model_validate_json(SPEC.read_text())
    if options.quick:
        fields = spec.model_dump() | {"model": {"kind": "mlp"}, "dataset": "digits"}
        spec = SearchSpec.model_validate(fields)
    clock = EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = run_search(spec, folder=Path(folder), threads=options.threads, progress=clock)
        seconds = time.perf_counter() - started
    epochs = [after - before for before, after in zip(clock.ended, clock.ended[1:], strict=False)]
    epoch = statistics.median(epochs[1:])
    kinds = [trial.kind for trial in planned_trials(spec)]
    tuned = sum(kind in ("baseline", "candidate") for kind in kinds)
    total = spec.compute.reference_epochs + tuned * spec.compute.epochs
    states = [outcome.state for outcome in found.outcomes.values()]
    print(
        json.dumps(
            {
                "benchmark": "search_cost",
                **machine(),
                "seconds": round(seconds, 1),
                "epochs": total,
                "dense_epoch_seconds": round(epoch, 3),
                "pruned": states.count("PRUNED"),
                "over_its_epochs": round(seconds / (total * epoch), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
