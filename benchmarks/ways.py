"""Training steps of dense networks in bfloat16 and by generated code, beside float32 as it is.

`python -m benchmarks.ways [--quick] [--threads N]` prints one JSON line. Times are taken in pairs:
median and quartiles of the ratios. With `--quick`, no code is generated.
"""

import argparse
import json

import torch

from benchmarks.machine import machine
from models.networks.build import build_network
from models.spec import Mlp, Model, Vit, dense_network
from search.data import image_data
from search.pace import race, seconds_of_a_step
from search.recipe import Training
from search.report import PLAIN, Execution
from search.spec import DATASET_TASKS
from search.training import Problem

MODELS: dict[str, Model] = {
    "perceptron, 128 wide": Mlp(hidden=(128, 128)),
    "perceptron, 512 wide": Mlp(hidden=(512, 512, 512)),
    "transformer, 64 wide": Vit(width=64),
    "transformer, 128 wide": Vit(),
}
BFLOAT16 = Execution(precision="bfloat16")


def main() -> None:
    """Race every network in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no generated code")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = image_data("mnist-5k", seed=0)
    problem = Problem(data, None, Training(), 0.0, 0)
    found: dict[str, dict[str, object]] = {}
    for name, model in MODELS.items():
        spec = dense_network(model, DATASET_TASKS["mnist-5k"])

        def network(spec=spec):  # type: ignore[no-untyped-def]
            return build_network(spec, generator=torch.Generator().manual_seed(0))

        ratio, _ = race(network, problem, BFLOAT16, PLAIN)
        found[name] = {
            "float32_seconds": round(seconds_of_a_step(network, problem, PLAIN), 5),
            "bfloat16_over_float32": ratio,
        }
        if arguments.quick:
            continue
        for way in (PLAIN, BFLOAT16):
            compiled = way.model_copy(update={"compiled": True})
            ratio, seconds = race(network, problem, compiled, way)
            found[name] |= {
                f"compiled_over_eager_{way.precision}": ratio,
                f"compiling_seconds_{way.precision}": round(seconds, 1),
            }
    print(json.dumps({"benchmark": "ways", "machine": machine(), "ways": found}))


if __name__ == "__main__":
    main()
