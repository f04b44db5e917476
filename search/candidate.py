"""A learned network: relaxed, learned while its cost falls, made hard, and fine-tuned."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from torch import nn

from models.spec import LayerSpec, MatrixTask, NetworkSpec
from models.structured.base import StructuredLinear
from models.structured.descent import descend
from search.alternatives import Mixture, Start, allocate_mixtures
from search.baselines import Projections, allocated, exchanged, uniform_ranks
from search.clock import Clock
from search.discretize import bake, harden
from search.filling import fill_groups, fill_merged
from search.fitting import best_fit
from search.gradient import Constraint, Learner
from search.linearised import constraint_in_time, longest_rank
from search.profile import Awareness, Profile
from search.progress import Progress
from search.relaxation import Relaxation, RelaxedLinear
from search.resolved import ResolvedSearch
from search.scratch import relax_from_scratch, scratch_groups
from search.spec import LearnerSettings, MetricName
from search.training import Phase, Problem, evaluate, fit, learning_rate_share, weight_groups
from search.within_time import within_time

POLISH = 1000  # steps of descent that a single matrix's candidate ends with


def starts(measured: Profile, resolved: ResolvedSearch, settings: LearnerSettings) -> list[Start]:
    """Allocate the start's cost: alternatives where they compete, and whole groups of terms."""
    cost = min(int(settings.start_excess * resolved.budget), resolved.dense_cost)
    aware = awareness(settings)
    if settings.structures in ("auto", "rectangles"):
        ranks = start_ranks(measured, resolved, settings)
        return [
            Start(Mixture(None, 0, p.terms(aware), p.errors(aware)), rank)
            for p, rank in zip(measured.layers, ranks, strict=True)
        ]
    found = allocate_mixtures(measured, resolved, cost, aware)
    return [
        Start(start.mixture, _whole_groups(start.rank, layer, settings.group))
        for start, layer in zip(found, resolved.layers, strict=True)
    ]


def start_ranks(
    measured: Profile, resolved: ResolvedSearch, settings: LearnerSettings
) -> list[int]:
    """Allocate the start's cost; whole groups of rank-1 terms, at least one in every layer.

    Under a budget in time no layer begins with ranks that take as long as dense.
    """
    cost = min(int(settings.start_excess * resolved.budget), resolved.dense_cost)
    match settings.start:
        case "answer" | "output":
            ranks, _ = measured.allocate_ranks(resolved, cost, settings.start)
        case "uniform" | "scratch":
            ranks = uniform_ranks(resolved, cost)
    if resolved.quantity == "latency":
        longest = [longest_rank(layer, resolved) for layer in resolved.layers]
        ranks = [min(pair) for pair in zip(ranks, longest, strict=True)]
    return [
        _whole_groups(rank, layer, settings.group)
        for rank, layer in zip(ranks, resolved.layers, strict=True)
    ]


def awareness(settings: LearnerSettings) -> Awareness:
    """Return what the first terms are chosen by."""
    return "answer" if settings.start == "answer" else "output"


def _whole_groups(rank: int, layer: LayerSpec, group: int) -> int:
    limit = min(layer.rows, layer.columns)
    group = min(group, limit)
    return min(-(-rank // group) * group, limit // group * group)


def relax(
    reference: nn.Module, measured: Profile, resolved: ResolvedSearch, settings: LearnerSettings
) -> tuple[nn.Module, Relaxation]:
    """Return a copy of the reference whose eligible layers are relaxed low-rank terms.

    Beside them stands an alternative where the allocation found that it pays.
    """
    network = copy.deepcopy(reference)
    layers = {}
    for p, start in zip(measured.layers, starts(measured, resolved, settings), strict=True):
        # What begins without any term has one that is dead, and may come to life with the filling.
        terms = start.rank or min(settings.group, p.layer.rows, p.layer.columns)
        layer = RelaxedLinear(
            p.layer,
            start.mixture.terms.row_factor[:, :terms].to(p.weight.dtype),
            start.mixture.terms.column_factor[:terms].to(p.weight.dtype),
            p.bias,
            group=min(settings.group, terms),
            alternative=start.mixture.alternative,
            alternative_size=start.mixture.size,
        )
        if not start.rank:
            nothing = torch.zeros(layer.groups, 2, dtype=torch.long)
            layer.set_rectangles(nothing, nothing)
        layers[p.layer.name] = layer
        network.set_submodule(p.layer.name, layer)
    return network, Relaxation(network, layers)


@dataclass(frozen=True, slots=True)
class Learned:
    """A hard network, its spec, and how much its validation loss rose when it was made hard."""

    spec: NetworkSpec
    network: nn.Module
    hardening_gap: float


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
    clock: Clock | None = None,
) -> Learned:
    """Find a structure and weights within the budget, as the settings say, and the clock, if any.

    Raises BudgetUnreachable where nothing is within a budget in time.
    """
    train = _Training(problem, epochs, folder, progress, after_epoch, clock)
    match settings.structures:
        case "auto" | "rectangles" | "competing":
            return _relaxed(reference, measured, resolved, settings, train)
        case "menu":
            return _chosen(reference, measured, resolved, settings, train)
        case _:
            assert_never(settings.structures)


@dataclass(frozen=True, slots=True)
class _Training:
    """What a candidate's weights are trained on, and for how long."""

    problem: Problem
    epochs: int
    folder: Path
    progress: Progress
    after_epoch: Callable[[int, float], None]
    clock: Clock | None


def _relaxed(
    reference: nn.Module,
    measured: Profile,
    resolved: ResolvedSearch,
    settings: LearnerSettings,
    train: _Training,
) -> Learned:
    """Learn structure and weights together, then the weights alone, and return the hard network.

    The rectangles are exact from the end of the learning on: what follows fine-tunes the hard
    structure, with the optimiser's moments kept, and hardening changes no number.
    """
    problem, total = train.problem, train.epochs * train.problem.steps_per_epoch
    from_scratch = settings.start == "scratch"
    if from_scratch:
        network, relaxation = relax_from_scratch(resolved, settings, seed=problem.seed)
        # The reference's curvature says nothing of another network.
        settings = settings.model_copy(update={"metric": _observable(settings.metric)})
    else:
        network, relaxation = relax(reference, measured, resolved, settings)
    network.to(problem.engine.device)
    team = problem.engine.team
    constraint = (
        Constraint.of(resolved)
        if train.clock is None
        else constraint_in_time(measured, resolved, awareness(settings), train.clock)
    )
    learner = Learner(
        relaxation,
        constraint,
        measured,
        settings,
        steps=learning_steps(settings, total),
        total_steps=total,
    )
    rate = settings.structural_rate * problem.rate
    supports = relaxation.structural_group(settings.structural_rate)
    weights = (
        scratch_groups(network, supports["params"], problem.recipe.weight_decay)
        if from_scratch
        else weight_groups(network, without=supports["params"])
    )

    def after_backward(step: int) -> None:
        team.average(relaxation.mask_gradients())
        learner.after_backward(step)

    def after_step(step: int) -> None:
        learner.after_step(step, rate * learning_rate_share(step, total))
        team.follow(relaxation.decisions())

    fit(
        network,
        problem,
        Phase("learning", 0, train.epochs, train.epochs),
        [*weights, supports],
        checkpoint=train.folder / "checkpoint.safetensors",
        progress=train.progress,
        some_rest=True,  # supports, once the rectangles are exact
        before_step=learner.before_step,
        after_backward=after_backward,
        after_step=after_step,
        after_epoch=train.after_epoch,
    )
    before = _validation_loss(network, problem)
    network.cpu()  # the rest is bookkeeping, number by number
    # What was timed stays as it is.
    filled = None if train.clock else Constraint.of(resolved)
    spec, hard = exchanged(network, resolved, _hard_layers(relaxation, filled))
    after = _validation_loss(hard, problem)
    _polish(hard, measured, problem)
    return Learned(spec, hard, after - before)


def _chosen(
    reference: nn.Module,
    measured: Profile,
    resolved: ResolvedSearch,
    settings: LearnerSettings,
    train: _Training,
) -> Learned:
    """Choose every structure at once, and fine-tune; what training spoils is not kept."""
    problem = train.problem
    if isinstance(problem.data.task, MatrixTask):
        (p,) = measured.layers
        best = best_fit(p.weight, p.layer, resolved, seed=problem.seed, progress=train.progress)
        spec, network = exchanged(reference, resolved, {p.layer.name: best})
    elif train.clock is not None:
        known: Projections = {}
        spec, network = within_time(
            train.clock,
            resolved,
            reference,
            lambda target: exchanged(reference, resolved, allocated(measured, target, known)),
        )
    else:
        static = settings.model_copy(update={"start_excess": 1.0, "group": 1})
        _, relaxation = relax(reference, measured, resolved, static)
        constraint = Constraint.of(resolved)
        relaxed = tuple(relaxation.layers.values())
        fill_groups(relaxed, constraint.weights, constraint.budget, pieces="ranks")
        spec, network = exchanged(reference, resolved, _hard_layers(relaxation, constraint))
    start = copy.deepcopy(network.state_dict())
    before = _validation_loss(network, problem)
    fit(
        network,
        problem,
        Phase("tuning", 0, train.epochs, train.epochs),
        weight_groups(network),
        checkpoint=train.folder / "checkpoint.safetensors",
        progress=train.progress,
        after_epoch=train.after_epoch,
    )
    if _validation_loss(network, problem) > before:
        network.load_state_dict(start)
    _polish(network, measured, problem)
    return Learned(spec, network, 0.0)


def _observable(metric: MetricName) -> MetricName:
    return "gradient" if metric == "curvature" else metric


def _validation_loss(network: nn.Module, problem: Problem) -> float:
    network.to(problem.engine.device)
    return evaluate(network, problem.data, problem.data.validation)[0]


def _hard_layers(
    relaxation: Relaxation, constraint: Constraint | None
) -> dict[str, StructuredLinear]:
    """Make every layer hard, with the budget, if given, used to its last step."""
    layers = tuple(relaxation.layers.values())
    for layer in layers:
        bake(layer)
    if constraint is not None:
        fill_merged(layers, constraint.weights, constraint.budget)
    return {name: harden(layer) for name, layer in relaxation.layers.items()}


def _polish(network: nn.Module, measured: Profile, problem: Problem) -> None:
    """Descend to the nearest member of its structure, where the data are a single matrix."""
    if isinstance(problem.data.task, MatrixTask):
        (p,) = measured.layers
        layer = network.get_submodule(p.layer.name)
        assert isinstance(layer, StructuredLinear)
        descend(layer.cpu(), p.weight, steps=POLISH)


def learning_steps(settings: LearnerSettings, total: int) -> int:
    """Return how many steps may change the structure; of a learner at least one, but not all."""
    if settings.structures == "menu":
        return 0
    return max(1, min(total - 1, round(settings.learning * total)))
