"""A learned network: relaxed, learned while its cost falls, made hard, and fine-tuned."""

import copy
from dataclasses import dataclass
from typing import Any, assert_never

from torch import nn

from models.spec import MatrixTask, NetworkSpec
from models.structured.base import StructuredLinear
from models.structured.descent import descend
from search.baselines import Built, Projections, allocated, exchanged
from search.clock import Clock
from search.discretize import bake, harden
from search.filling import fill_groups, fill_merged
from search.fitting import best_fit
from search.gradient import Constraint, Learner
from search.linearised import constraint_in_time
from search.profile import Profile
from search.progress import Progress
from search.relaxation import Relaxation
from search.scratch import relax_from_scratch, scratch_groups
from search.settling import Settled
from search.spec import LearnerSettings, MetricName
from search.starts import awareness, relax
from search.training import Course, Problem, evaluate, fit, learning_rate_share, weight_groups
from search.within_time import within_time

POLISH = 1000  # steps of descent that a single matrix's candidate ends with


@dataclass(frozen=True, slots=True)
class Learned:
    """A hard network, its spec, and how much its validation loss rose when it was made hard."""

    spec: NetworkSpec
    network: nn.Module
    hardening_gap: float


def learn(
    settled: Settled, settings: LearnerSettings, course: Course, *, clock: Clock | None = None
) -> Learned:
    """Find a structure and weights within the budget, as the settings say, and the clock, if any.

    Raises BudgetUnreachable where nothing is within a budget in time, and what `fit` raises.
    """
    match settings.structures:
        case "auto" | "rectangles" | "competing":
            return _relaxed(settled, settings, course, clock)
        case "menu":
            return _chosen(settled, settings, course, clock)
        case _:
            assert_never(settings.structures)


@dataclass(frozen=True, slots=True)
class Relaxed:
    """A relaxed network, what changes its rectangles, and its parameters in groups for `fit`."""

    network: nn.Module
    relaxation: Relaxation
    learner: Learner
    groups: list[dict[str, Any]]


def relaxed_network(
    settled: Settled,
    settings: LearnerSettings,
    problem: Problem,
    *,
    steps: int,
    progress: Progress,
    clock: Clock | None = None,
) -> Relaxed:
    """Relax the eligible layers of the reference, or of a network drawn anew, on the device.

    `steps` are all that the course has, of which the learner takes its share.
    """
    resolved, measured = settled.resolved, settled.profile
    from_scratch = settings.start == "scratch"
    if from_scratch:
        network, relaxation = relax_from_scratch(resolved, settings, seed=problem.seed)
        # The reference's curvature says nothing of another network.
        settings = settings.model_copy(update={"metric": _observable(settings.metric)})
    else:
        network, relaxation = relax(settled.network, measured, resolved, settings, progress)
    network.to(problem.engine.device)
    constraint = (
        Constraint.of(resolved)
        if clock is None
        else constraint_in_time(measured, resolved, awareness(settings), clock)
    )
    learner = Learner(
        relaxation,
        constraint,
        measured,
        settings,
        steps=learning_steps(settings, steps),
        total_steps=steps,
    )
    supports = relaxation.structural_group(settings.structural_rate)
    weights = (
        scratch_groups(network, supports["params"], problem.recipe.weight_decay)
        if from_scratch
        else weight_groups(network, without=supports["params"])
    )
    return Relaxed(network, relaxation, learner, [*weights, supports])


def _relaxed(
    settled: Settled, settings: LearnerSettings, course: Course, clock: Clock | None
) -> Learned:
    """Learn structure and weights together, then the weights alone, and return the hard network.

    The rectangles are exact from the end of the learning on: what follows fine-tunes the hard
    structure, with the optimiser's moments kept, and hardening changes no number.
    """
    problem, resolved = course.problem, settled.resolved
    relaxed = relaxed_network(
        settled, settings, problem, steps=course.steps, progress=course.progress, clock=clock
    )
    network, relaxation, learner = relaxed.network, relaxed.relaxation, relaxed.learner
    team, rate = problem.engine.team, settings.structural_rate * problem.rate

    def after_backward(step: int) -> None:
        team.average(relaxation.mask_gradients())
        learner.after_backward(step)

    def after_step(step: int) -> None:
        learner.after_step(step, rate * learning_rate_share(step, course.steps))
        team.follow(relaxation.decisions())

    fit(
        network,
        course,
        relaxed.groups,
        phase="learning",
        some_rest=True,  # supports, once the rectangles are exact
        before_step=learner.before_step,
        after_backward=after_backward,
        after_step=after_step,
    )
    before = _validation_loss(network, problem)
    network.cpu()  # the rest is bookkeeping, number by number
    # What was timed stays as it is.
    filled = None if clock else Constraint.of(resolved)
    spec, hard = exchanged(network, resolved, _hard_layers(relaxation, filled))
    after = _validation_loss(hard, problem)
    _polish(hard, settled.profile, problem)
    return Learned(spec, hard, after - before)


def _chosen(
    settled: Settled, settings: LearnerSettings, course: Course, clock: Clock | None
) -> Learned:
    """Choose every structure at once, and fine-tune; what training spoils is not kept."""
    problem = course.problem
    spec, network = _best_before_training(settled, settings, course, clock)
    start = copy.deepcopy(network.state_dict())
    before = _validation_loss(network, problem)
    fit(network, course, weight_groups(network), phase="tuning")
    if _validation_loss(network, problem) > before:
        network.load_state_dict(start)
    _polish(network, settled.profile, problem)
    return Learned(spec, network, 0.0)


def _best_before_training(
    settled: Settled, settings: LearnerSettings, course: Course, clock: Clock | None
) -> Built:
    """Fit a single matrix by every kind; else allocate the menu, by the clock or its mixtures."""
    problem, resolved, measured = course.problem, settled.resolved, settled.profile
    if isinstance(problem.data.task, MatrixTask):
        (p,) = measured.layers
        best = best_fit(p.weight, p.layer, resolved, seed=problem.seed, progress=course.progress)
        return exchanged(settled.network, resolved, {p.layer.name: best})
    if clock is not None:
        known: Projections = {}
        return within_time(
            clock,
            resolved,
            settled.network,
            lambda target: exchanged(
                settled.network, resolved, allocated(measured, target, known, course.progress)
            ),
        )
    static = settings.model_copy(update={"start_excess": 1.0, "group": 1})
    _, relaxation = relax(settled.network, measured, resolved, static, course.progress)
    constraint = Constraint.of(resolved)
    relaxed = tuple(relaxation.layers.values())
    fill_groups(relaxed, constraint.weights, constraint.budget, pieces="ranks")
    return exchanged(settled.network, resolved, _hard_layers(relaxation, constraint))


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
