"""What a step of the relaxed network takes beside a step of the dense one, over a whole phase.

`python -m benchmarks.step_cost [--quick]` prints one JSON line. Both are timed in turns, step by
step, from the first step, which costs most, to the last, when the structure is hard.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.machine import machine
from models.networks.build import build_network
from models.spec import ImageTask, TextTask
from search.candidate import relaxed_network
from search.data import Data, Split
from search.profile import profile
from search.progress import Silent
from search.resolved import ResolvedSearch, resolve
from search.settling import Settled
from search.spec import LearnerSettings, SearchSpec
from search.training import Problem, weight_groups

NETWORKS = {
    "vit": {
        "model": {"kind": "vit", "patch": 7, "width": 128, "depth": 6, "heads": 4},
        "dataset": "fashion-mnist",
    },
    "gpt": {
        "model": {"kind": "gpt", "context": 128, "width": 256, "depth": 6, "heads": 4},
        "dataset": "state-of-the-union",
    },
}
# Steps of a phase by batch: 10,240 samples. Decisions that come a fixed number of times would count
# for too much in a shorter one.
STEPS = {64: 160, 256: 40}
SHARE = 0.15


def noise_like(resolved: ResolvedSearch, samples: int) -> Data:
    """Random inputs of the task's shape: a step takes as long on them as on real ones."""
    generator = torch.Generator().manual_seed(0)
    match resolved.network.task:
        case ImageTask(channels=channels, height=height, width=width, classes=classes):
            inputs = torch.randn(samples, channels, height, width, generator=generator)
            targets = torch.randint(classes, (samples,), generator=generator)
        case TextTask(vocabulary=vocabulary, context=context):
            inputs = torch.randint(vocabulary, (samples, context), generator=generator)
            targets = torch.randint(vocabulary, (samples, context), generator=generator)
        case task:
            raise AssertionError(task.kind)
    split = Split(inputs, targets)
    return Data(resolved.network.task, 1, split, split, split)


def cell(name: str, settings: LearnerSettings, *, batch: int, steps: int) -> dict[str, object]:
    """Train the dense and the relaxed network side by side for a phase of so many steps."""
    spec = SearchSpec.model_validate(
        NETWORKS[name]
        | {"budget": {"ratio": SHARE}, "training": {"batch": batch, "distillation": 0}}
    )
    resolved = resolve(spec)
    data = noise_like(resolved, max(batch, 128))
    dense = build_network(resolved.network, generator=torch.Generator().manual_seed(0))
    measured = profile(dense, data, resolved, Silent())
    problem = Problem(data, None, spec.training, spec.training.tuning_rate, 0)
    settled = Settled(resolved, dense, measured)
    relaxed = relaxed_network(settled, settings, problem, steps=steps, progress=Silent())
    learner = relaxed.learner

    rival = copy.deepcopy(dense)
    plain = _stepper(rival, weight_groups(rival), problem, lambda _: None)
    ours = _stepper(relaxed.network, relaxed.groups, problem, learner.after_backward)
    layers = relaxed.relaxation.layers.values()
    seconds: list[tuple[float, float]] = []
    for step in range(steps):
        started = time.perf_counter()
        plain(step)
        between = time.perf_counter()
        learner.before_step(step)
        ours(step)
        learner.after_step(step, settings.structural_rate * problem.rate)
        seconds.append((between - started, time.perf_counter() - between))
    # The first steps of a process are slower, whoever takes them.
    kept = seconds[2:]
    ratios = [one / other for other, one in kept]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "network": name,
        "batch": batch,
        "structures": settings.structures,
        "alternatives": sum(layer.alternative is not None for layer in layers),
        "steps": len(kept),
        "mean_relaxed_over_mean_dense": round(
            sum(one for _, one in kept) / sum(other for other, _ in kept), 3
        ),
        "median_of_pairs": [round(value, 3) for value in (middle, low, high)],
    }


def _stepper(
    network: nn.Module,
    groups: list[dict[str, object]],
    problem: Problem,
    after_backward: Callable[[int], None],
) -> Callable[[int], None]:
    optimiser = torch.optim.AdamW(groups, lr=problem.rate, fused=True)
    indices = torch.arange(problem.recipe.batch) % len(problem.data.train)

    def step(number: int) -> None:
        network.train()
        loss = problem.loss(network, indices)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        after_backward(number)
        optimiser.step()

    return step


def main() -> None:
    """Measure all cells, or with --quick the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the transformer, batches of 64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of every batch; by default 10,240 samples")
    parser.add_argument("--structures", choices=["rectangles", "competing"], default="rectangles")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = list(NETWORKS)[:1] if options.quick else list(NETWORKS)
    batches = list(STEPS)[:1] if options.quick else list(STEPS)
    settings = LearnerSettings(structures=options.structures)
    cells = [
        cell(name, settings, batch=batch, steps=options.steps or STEPS[batch])
        for name in names
        for batch in batches
    ]
    print(json.dumps({"benchmark": "step_cost", **machine(), "share": SHARE, "results": cells}))


if __name__ == "__main__":
    main()
