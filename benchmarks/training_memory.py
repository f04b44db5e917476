"""The most memory that the trials of a search hold, beside the training of the dense network alone.

`python -m benchmarks.training_memory [--quick]` prints one JSON line. Every training has a process
of its own, whose packages are not counted: peak resident memory above what it was after importing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks.machine import machine
from benchmarks.trials import REFERENCE, run_alone
from search.compute import HERE
from search.data import load_data
from search.plan import PlannedTrial
from search.progress import Silent
from search.reference import train_reference
from search.resolved import resolve
from search.spec import LearnerSettings, SearchSpec

SPECS = {
    "transformer, 128 wide": {
        "model": {"kind": "vit"},
        "dataset": "mnist-5k",
        "budget": {"ratio": 0.15},
        "compute": {"epochs": 1, "reference_epochs": 1},
        "training": {"samples": 640},
    },
    "perceptron, 512 wide": {
        "model": {"kind": "mlp", "hidden": [512, 512, 512]},
        "dataset": "mnist-5k",
        "budget": {"ratio": 0.15},
        "compute": {"epochs": 1, "reference_epochs": 1},
        "training": {"samples": 640},
    },
}
TRIALS = {
    "reference": REFERENCE,
    "allocated low rank": PlannedTrial(1, "baseline", "allocated_low_rank"),
    "candidate": PlannedTrial(2, "candidate"),
}
# A start with more terms than the budget holds, as large as the space of settings goes by default.
LEARNER = LearnerSettings(start_excess=1.3)


def alone(spec: SearchSpec, what: str, home: Path) -> int:
    """Return how far the memory of this process rises above what it holds now, in bytes."""
    process = psutil.Process()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = process.memory_info().rss
    if what == "dense":
        train_reference(
            *(spec, resolve(spec), load_data(spec, home)),
            engine=HERE,
            folder=home,
            progress=Silent(),
        )
    else:
        run_alone(
            *(spec, TRIALS[what]),
            home=home,
            folder=home / what,
            reference=home / "reference",
            settings=LEARNER,
            threads=1,
        )
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return peak * 1024 - before


def main() -> None:
    """Measure every training of every spec in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the perceptron alone")
    parser.add_argument("--only", nargs=3, metavar=("SPEC", "WHAT", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.only:
        name, what, home = arguments.only
        print(alone(SearchSpec.model_validate(SPECS[name]), what, Path(home)))
        return
    found: dict[str, dict[str, object]] = {}
    for name in list(SPECS)[-1:] if arguments.quick else SPECS:
        with tempfile.TemporaryDirectory() as home:
            found[name] = {}
            dense = _in_a_process(name, "dense", home)
            for what in TRIALS:
                ratio = _in_a_process(name, what, home) / dense
                found[name][f"{what} over dense"] = round(ratio, 2)
            found[name]["dense_megabytes"] = round(dense / 2**20, 1)
    print(json.dumps({"benchmark": "training_memory", **machine(), "memory": found}))


def _in_a_process(name: str, what: str, home: str) -> int:
    command = [sys.executable, "-m", "benchmarks.training_memory", "--only", name, what, home]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
