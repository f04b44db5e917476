"""A learned network: relaxed, learned while its cost falls, made hard, and fine-tuned."""

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from models.checkpoint import load_network, load_spec, load_tensors, save_network, save_tensors
from models.cost import layer_weight
from search.baselines import Built, exchanged, uniform_ranks
from search.discretize import fill, harden
from search.gradient import Constraint, Learner
from search.profile import Profile
from search.progress import Progress
from search.relaxation import Relaxation, RelaxedLinear
from search.spec import LearnerSettings, ResolvedSearch
from search.training import Phase, Problem, evaluate, fit, learning_rate_share, weight_groups


@dataclass(frozen=True, slots=True)
class Learned:
    """A hard network, the least step left out of its budget, its loss before and after rounding."""

    built: Built
    smallest_step: int
    soft_loss: float
    hard_loss: float


def start_ranks(
    measured: Profile, resolved: ResolvedSearch, settings: LearnerSettings
) -> list[int]:
    """Allocate the start's cost; whole groups of rank-1 terms, at least one in every layer."""
    cost = min(int(settings.start_excess * resolved.budget), resolved.dense_cost)
    match settings.start:
        case "answer" | "output":
            ranks, _ = measured.allocate_ranks(resolved, cost, settings.start)
        case "uniform":
            ranks = uniform_ranks(resolved, cost)
    limits = [min(layer.rows, layer.columns) for layer in resolved.layers]
    group = settings.group
    return [
        max(group, min(-(-rank // group) * group, limit // group * group))
        for rank, limit in zip(ranks, limits, strict=True)
    ]


def relax(
    reference: nn.Module, measured: Profile, resolved: ResolvedSearch, settings: LearnerSettings
) -> tuple[nn.Module, Relaxation]:
    """Return a copy of the reference whose eligible layers are relaxed low-rank terms."""
    network = copy.deepcopy(reference)
    layers = {}
    ranks = start_ranks(measured, resolved, settings)
    for p, rank in zip(measured.layers, ranks, strict=True):
        terms = p.terms("answer" if settings.start == "answer" else "output")
        layers[p.layer.name] = RelaxedLinear(
            p.layer,
            terms.row_factor[:, :rank].to(p.weight.dtype),
            terms.column_factor[:rank].to(p.weight.dtype),
            p.bias,
            group=min(settings.group, rank),
        )
        network.set_submodule(p.layer.name, layers[p.layer.name])
    return network, Relaxation(network, layers)


def learn(
    reference: nn.Module,
    measured: Profile,
    resolved: ResolvedSearch,
    settings: LearnerSettings,
    problem: Problem,
    *,
    epochs: int,
    folder: Path,
    progress: Progress,
) -> Learned:
    """Learn the structure over the first share of the epochs and make it hard.

    A hard network that lies in `folder` already is taken from there.
    """
    hard = folder / "hard"
    if (hard / "learned.safetensors").exists():
        _, notes = load_tensors(hard / "learned.safetensors")
        return Learned((load_spec(hard), load_network(hard)), **notes)
    network, relaxation = relax(reference, measured, resolved, settings)
    layers = tuple(relaxation.layers.values())
    weights = tuple(layer_weight(layer.layer, resolved.quantity) for layer in layers)
    last = learning_epochs(settings, epochs)
    total = epochs * problem.steps_per_epoch
    learner = Learner(
        relaxation,
        Constraint(resolved.budget, weights),
        measured,
        settings,
        steps=last * problem.steps_per_epoch,
        total_steps=total,
    )
    rate = settings.structural_rate * problem.recipe.learning_rate
    supports = relaxation.structural_group(settings.structural_rate)
    structural = set(supports["params"])
    groups = [
        {**group, "params": [p for p in group["params"] if p not in structural]}
        for group in weight_groups(network)
    ]
    fit(
        network,
        problem,
        Phase("learning", 0, last, epochs),
        [*groups, supports],
        checkpoint=folder / "checkpoint.safetensors",
        progress=progress,
        after_backward=learner.after_backward,
        after_step=lambda step: learner.after_step(step, rate * learning_rate_share(step, total)),
    )
    soft, _ = evaluate(network, problem.data, problem.data.validation)
    learner.measure()
    step = fill(layers, weights, resolved.budget, pieces=settings.pieces)
    hardened = {name: harden(layer) for name, layer in relaxation.layers.items()}
    built = exchanged(network, resolved, hardened)
    loss, _ = evaluate(built[1], problem.data, problem.data.validation)
    notes = {"smallest_step": step, "soft_loss": soft, "hard_loss": loss}
    save_network(hard, *built)
    save_tensors(hard / "learned.safetensors", {}, notes)
    return Learned(built, step, soft, loss)


def learning_epochs(settings: LearnerSettings, epochs: int) -> int:
    """Return how many epochs learn the structure; the last one always fine-tunes."""
    return max(1, min(epochs - 1, round(settings.learning * epochs)))
