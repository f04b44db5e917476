"""Numbers that a refactoring must leave alone: losses of a tiny training, costs of known networks.

They are rewritten, on purpose only, by `python -m tests.golden.test_losses`.
"""

import json
from pathlib import Path

import pytest
import torch

from models.cost import network_macs, network_parameters
from models.networks.build import build_network
from models.spec import Gpt, Mixer, Mlp, Vit, dense_network
from search.data import image_data
from search.recipe import Training
from search.spec import DATASET_TASKS
from search.training import Problem, weight_groups

FILE = Path(__file__).with_name("losses.json")
STEPS = 20


def losses() -> list[float]:
    """The training loss of each step of a small perceptron on the digits."""
    data = image_data("digits", seed=0)
    spec = dense_network(Mlp(hidden=(16, 12)), DATASET_TASKS["digits"])
    network = build_network(spec, generator=torch.Generator().manual_seed(0))
    problem = Problem(data, None, Training(), rate=0.01, seed=0)
    optimiser = torch.optim.AdamW(weight_groups(network), lr=problem.rate)
    found = []
    for indices in list(problem.batches(0))[:STEPS]:
        loss = problem.loss(network, indices)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def costs() -> dict[str, list[int]]:
    """MACs and parameters of the default networks, dense."""
    task = DATASET_TASKS["mnist-5k"]
    networks = {
        "mlp": dense_network(Mlp(), task),
        "vit": dense_network(Vit(), task),
        "mixer": dense_network(Mixer(), task),
        "gpt": dense_network(Gpt(), DATASET_TASKS["state-of-the-union"]),
    }
    return {
        name: [network_macs(network), network_parameters(network)]
        for name, network in networks.items()
    }


def test_the_losses_of_a_small_training_are_the_ones_written_down() -> None:
    expected = json.loads(FILE.read_text(encoding="utf-8"))["losses"]
    assert losses() == pytest.approx(expected, rel=1e-3)


def test_the_default_networks_cost_what_is_written_down() -> None:
    assert costs() == json.loads(FILE.read_text(encoding="utf-8"))["costs"]


if __name__ == "__main__":
    golden = {"losses": losses(), "costs": costs()}
    FILE.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")
