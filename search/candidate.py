"""A learned network: relaxed, learned while its cost falls, made hard, and fine-tuned."""

import copy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from search.baselines import Built, exchanged, uniform_ranks
from search.discretize import bake, harden
from search.filling import fill_merged
from search.gradient import Constraint, Learner
from search.profile import Profile
from search.progress import Progress
from search.relaxation import Relaxation, RelaxedLinear
from search.spec import LearnerSettings, ResolvedSearch
from search.training import Phase, Problem, fit, learning_rate_share, weight_groups


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
    groups = [min(settings.group, limit) for limit in limits]
    return [
        min(-(-rank // group) * group, limit // group * group)
        for rank, group, limit in zip(ranks, groups, limits, strict=True)
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
    after_epoch: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Built:
    """Learn structure and weights together, then the weights alone, and return the hard network.

    The rectangles are exact from the end of the learning on: what follows fine-tunes the hard
    structure, with the optimiser's moments kept, and hardening changes no number.
    """
    network, relaxation = relax(reference, measured, resolved, settings)
    network.to(problem.engine.device)
    team = problem.engine.team
    total = epochs * problem.steps_per_epoch
    learner = Learner(
        relaxation,
        Constraint.of(resolved),
        measured,
        settings,
        steps=learning_steps(settings, total),
        total_steps=total,
    )
    rate = settings.structural_rate * problem.rate
    supports = relaxation.structural_group(settings.structural_rate)

    def after_backward(step: int) -> None:
        team.average(relaxation.mask_gradients())
        learner.after_backward(step)

    def after_step(step: int) -> None:
        learner.after_step(step, rate * learning_rate_share(step, total))
        team.follow(supports["params"])

    fit(
        network,
        problem,
        Phase("learning", 0, epochs, epochs),
        [*weight_groups(network, without=supports["params"]), supports],
        checkpoint=folder / "checkpoint.safetensors",
        progress=progress,
        some_rest=True,  # supports, once the rectangles are exact
        before_step=learner.before_step,
        after_backward=after_backward,
        after_step=after_step,
        after_epoch=after_epoch,
    )
    network.cpu()  # the rest is bookkeeping, number by number
    layers, constraint = tuple(relaxation.layers.values()), Constraint.of(resolved)
    for layer in layers:
        bake(layer)
    fill_merged(layers, constraint.weights, constraint.budget)
    hard = {name: harden(layer) for name, layer in relaxation.layers.items()}
    return exchanged(network, resolved, hard)


def learning_steps(settings: LearnerSettings, total: int) -> int:
    """Return how many steps may change the structure; at least one, and one must fine-tune."""
    return max(1, min(total - 1, round(settings.learning * total)))
