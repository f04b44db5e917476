"""What each part of the default learner is worth: the demonstration's search, parts exchanged.

`python -m benchmarks.ablation [--quick] [--small]` prints one JSON line. All train for the same
epochs, each seed from its own split and reference; the cost is the budget's for all.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.trials import REFERENCE, run_alone
from models.checkpoint import load_network
from search.data import load_data
from search.plan import PlannedTrial
from search.spec import LearnerSettings, SearchSpec
from search.training import evaluate

SMALL = {
    "model": {"kind": "vit", "patch": 2, "width": 64, "depth": 2, "heads": 4},
    "dataset": "digits",
    "budget": {"ratio": 0.15},
    "compute": {"epochs": 6, "reference_epochs": 30},
}
SPEC = Path(__file__).parents[1] / "examples" / "mnist_vit.json"
DEFAULT = LearnerSettings()
LEARNERS: dict[str, LearnerSettings | None] = {
    "allocated low rank (baseline)": None,
    "default": DEFAULT,
    "uniform threshold": DEFAULT.model_copy(update={"metric": "uniform"}),
    "gradient saliency": DEFAULT.model_copy(update={"metric": "gradient"}),
    "ranks only": DEFAULT.model_copy(update={"pieces": "ranks"}),
    "no Gaudi gradient": DEFAULT.model_copy(update={"gaudi": False}),
    "no proximal step": DEFAULT.model_copy(update={"shrink": 0.0}),
    "start by output": DEFAULT.model_copy(update={"start": "output"}),
    "start from 2 x the budget": DEFAULT.model_copy(update={"start_excess": 2.0}),
    "competing alternatives": DEFAULT.model_copy(update={"structures": "competing"}),
    "menu (nothing learned but weights)": DEFAULT.model_copy(update={"structures": "menu"}),
    "from scratch": DEFAULT.model_copy(update={"start": "scratch", "start_excess": 2.0}),
}
BASELINE = PlannedTrial(1, "baseline", "allocated_low_rank")
CANDIDATE = PlannedTrial(2, "candidate")


def losses(spec: SearchSpec, name: str, home: Path, *, threads: int) -> tuple[float, float]:
    """Train one learner from one seed's reference; return validation and test loss."""
    folder, reference = home / name / str(spec.seed), home / "reference" / str(spec.seed)
    settings = LEARNERS[name]
    if not reference.exists():
        run_alone(
            *(spec, REFERENCE),
            home=home,
            folder=reference,
            reference=reference,
            threads=threads,
        )
    run_alone(
        *(spec, BASELINE if settings is None else CANDIDATE),
        home=home,
        folder=folder,
        reference=reference,
        settings=settings,
        threads=threads,
    )
    data, network = load_data(spec, home), load_network(folder / "export")
    return evaluate(network, data, data.validation)[0], evaluate(network, data, data.test)[0]


def main() -> None:
    """Run every learner for every seed, and print means and deviations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed and two learners")
    parser.add_argument("--small", action="store_true", help="digits, and a smaller transformer")
    parser.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=list(LEARNERS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    seeds = range(1) if arguments.quick else range(3)
    names = list(LEARNERS)[:2] if arguments.quick else arguments.learners
    spec = SearchSpec.model_validate(SMALL if arguments.small else json.loads(SPEC.read_text()))
    table: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as home:
        for name in names:
            pairs = [
                losses(
                    spec.model_copy(update={"seed": seed}),
                    name,
                    Path(home),
                    threads=arguments.threads,
                )
                for seed in seeds
            ]
            table[name] = {
                f"{part}_loss": {
                    "seeds": [round(value, 4) for value in values],
                    "mean": round(statistics.fmean(values), 4),
                    "deviation": round(statistics.stdev(values), 4) if len(values) > 1 else None,
                }
                for part, values in zip(
                    ("validation", "test"), zip(*pairs, strict=True), strict=True
                )
            }
    print(json.dumps({"benchmark": "ablation", "threads": arguments.threads, "learners": table}))


if __name__ == "__main__":
    main()
