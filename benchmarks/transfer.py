"""Whether the best learning rate of a narrow perceptron is that of a wide one, digit images.

`python -m benchmarks.transfer [--quick]` prints one JSON line: for every structure and rule, the
final training loss of each width and rate, the best rate of each width, and the factor between the
best rates of the narrowest and the widest. "own fan-in" is `search.from_scratch`; "dense fan-in" is
the same rule with every tensor's rate that of the dense layer; "one rate" is Adam with the same
rate for every tensor and an ordinary readout.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from models.networks.build import build_network
from models.spec import Mlp, NetworkSpec, dense_network
from models.structured import DenseLinear
from models.structured.trainable import outermost_layers
from models.structures import Btt, Dense, LowRank, Structure
from search.data import Data, image_data
from search.from_scratch import maximal_update_groups, rate_factors, silence
from search.training import evaluate, weight_groups

Rule = Literal["own fan-in", "dense fan-in", "one rate"]
# The learning rates to try, as exponents of 2.
RULES: Mapping[Rule, range] = {
    "own fan-in": range(-9, -2),
    "dense fan-in": range(-9, -2),
    "one rate": range(-11, -4),
}


def block_tensor_train(width: int) -> Btt:
    """Blocks about as many as they are wide, of rank 2."""
    blocks = 2 ** (width.bit_length() // 2)
    return Btt(input_blocks=blocks, output_blocks=blocks, rank=2)


STRUCTURES: Mapping[str, Callable[[int], Structure]] = {
    "dense": lambda _width: Dense(),
    "low rank": lambda width: LowRank(rank=width // 4),
    "BTT": block_tensor_train,
}
WIDTHS = (64, 128, 256, 512)
HIDDEN = 4  # square layers between embedding and readout
STEPS, BATCH = 100, 128


def network_spec(data: Data, structure: Callable[[int], Structure], width: int) -> NetworkSpec:
    """Dense embedding and readout, and square structured layers between them."""
    dense = dense_network(Mlp(hidden=(width,) * (HIDDEN + 1)), data.task)
    return dense.with_structures({f"layers.{1 + i}": structure(width) for i in range(HIDDEN)})


def prepare(
    spec: NetworkSpec, rule: Rule, base: NetworkSpec, generator: torch.Generator
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A network from scratch, and its groups of parameters."""
    network = build_network(spec, generator=generator)
    if rule == "one rate":
        return network, weight_groups(network)
    assert isinstance(network.head, DenseLinear)
    silence(network.head)
    groups = maximal_update_groups(network, base=base)
    if rule == "dense fan-in":
        groups = [
            {"params": [p], "factor": group["factor"] * own_over_dense(network, p)}
            for group in groups
            for p in group["params"]
        ]
    return network, groups


def own_over_dense(network: nn.Module, parameter: nn.Parameter) -> float:
    """What takes a tensor's factor back to that of the dense layer."""
    for _, layer in outermost_layers(network):
        for name, factor in rate_factors(layer, base_columns=layer.dense_fan_in()).items():
            if layer.get_parameter(name) is parameter:
                return 1 / factor
    return 1.0


def final_loss(
    data: Data, spec: NetworkSpec, rule: Rule, base: NetworkSpec, *, rate: float, seed: int
) -> float:
    """Train for a hundred steps, the rate falling linearly to zero; return the training loss."""
    generator = torch.Generator().manual_seed(seed)
    network, groups = prepare(spec, rule, base, generator)
    optimiser = torch.optim.Adam(groups, lr=rate, fused=True)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"] * (1 - step / STEPS)
        indices = torch.randint(len(data.train), (BATCH,), generator=generator)
        outputs = network(data.train.inputs[indices])
        loss = functional.cross_entropy(outputs, data.train.targets[indices])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return evaluate(network, data, data.train)[0]


def best_exponent(losses: Mapping[int, Sequence[float]]) -> float:
    """Where a parabola through the lowest log loss and its neighbours has its bottom."""
    heights = {
        exponent: statistics.fmean(math.log(min(max(loss, 1e-9), 1e3)) for loss in several)
        for exponent, several in losses.items()
        if all(map(math.isfinite, several))
    }
    best = min(heights, key=lambda exponent: heights[exponent])
    if not {best - 1, best + 1} <= heights.keys():
        return float(best)
    before, here, after = (heights[best + offset] for offset in (-1, 0, 1))
    return best + (before - after) / (2 * (before + after - 2 * here))


def measure(data: Data, name: str, rule: Rule, widths: Sequence[int], seeds: int) -> dict[str, Any]:
    """Every width and rate of one structure under one rule."""
    base = network_spec(data, STRUCTURES[name], widths[0])
    losses = {
        width: {
            exponent: [
                final_loss(
                    data,
                    network_spec(data, STRUCTURES[name], width),
                    rule,
                    base,
                    rate=2.0**exponent,
                    seed=seed,
                )
                for seed in range(seeds)
            ]
            for exponent in RULES[rule]
        }
        for width in widths
    }
    best = {width: best_exponent(found) for width, found in losses.items()}
    narrow, wide = best[widths[0]], best[widths[-1]]
    return {
        "losses": {
            width: {f"2^{e}": [round(v, 5) for v in several] for e, several in found.items()}
            for width, found in losses.items()
        },
        "best_rate": {width: round(2**exponent, 5) for width, exponent in best.items()},
        "factor": round(2 ** abs(wide - narrow), 2),
        "largest_factor": round(2 ** (max(best.values()) - min(best.values())), 2),
    }


def main() -> None:
    """Measure every structure with the rule and without it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="narrowest and 4 x as wide, one seed")
    parser.add_argument("--structures", nargs="+", choices=STRUCTURES, default=list(STRUCTURES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, started = image_data("digits", seed=0), time.process_time()
    widths, seeds = (WIDTHS[::2], 1) if arguments.quick else (WIDTHS, 3)
    table = {
        name: {
            rule: measure(data, name, rule, widths, seeds)
            for rule in RULES
            if (name, rule) != ("dense", "dense fan-in")
        }
        for name in arguments.structures
    }
    cpu_seconds = round(time.process_time() - started)
    print(json.dumps({"benchmark": "transfer", "cpu_seconds": cpu_seconds, "structures": table}))


if __name__ == "__main__":
    main()
