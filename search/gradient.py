"""The differentiable phase: structure and weights learned together while the cost falls.

From somewhat above it, a cubic schedule brings the exact cost down to the budget; what leaves is
chosen by saliency, while the Gaussian-Dirichlet gradients move rectangles and let them grow back
(Lee & Kim, ICLR 2024, arXiv 2310.18882, with another metric for the shrink).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from models.cost import layer_weight
from search.budget import group_cost, relaxed_cost, shrink_to
from search.filling import fill_groups
from search.profile import LayerProfile, Profile
from search.relaxation import Relaxation, RelaxedLinear
from search.resolved import ResolvedSearch
from search.saliency import measure_curvature, observe_gradient
from search.spec import BudgetUnreachable, LearnerSettings
from search.tightening import tightest

INTERVAL = 8  # steps between two points of the schedule
TOO_LONG = "every structure that was tried took longer than the budget, once it was timed"
SMALLEST = 1e-20  # saliency of what has none, so that ratios of costs to it stay finite
MEMORY = 0.95  # of the running mean of saliencies


@dataclass(frozen=True, slots=True)
class Constraint:
    """The budget of the relaxed layers, and what one number of each layer costs.

    Where `excess` is given the costs are about right only: it measures, once the structure is
    found, by how much that is too dear in the same unit.
    """

    budget: int
    weights: tuple[int, ...]
    excess: Callable[[Sequence[RelaxedLinear]], int] | None = None

    @staticmethod
    def of(resolved: ResolvedSearch) -> "Constraint":
        """Take it from a search's eligible layers."""
        weights = tuple(layer_weight(layer, resolved.counted) for layer in resolved.layers)
        return Constraint(resolved.budget, weights)


@final
class Learner:
    """Watches the gradients and, between two training steps, changes the rectangles."""

    def __init__(
        self,
        relaxation: Relaxation,
        constraint: Constraint,
        measured: Profile,
        settings: LearnerSettings,
        *,
        steps: int,
        total_steps: int,
    ) -> None:
        self.relaxation = relaxation
        self.layers: Sequence[RelaxedLinear] = tuple(relaxation.layers.values())
        self.constraint = constraint
        self.profiles: list[LayerProfile] = []
        if settings.metric == "curvature":
            pairs = zip(measured.layers, self.layers, strict=True)
            self.profiles = [p.near(layer.row_factors) for p, layer in pairs]
        self.settings = settings
        self.steps = steps
        self.scheduled = max(1, min(steps - 1, round(settings.schedule * total_steps)))
        self.start_cost = relaxed_cost(self.layers, constraint.weights)
        self._measure()

    def before_step(self, step: int) -> None:
        """Sharpen the masks linearly; from the last tenth of the learning on they are exact."""
        settings = self.settings
        share = step / max(1, 0.9 * self.steps)
        if not settings.gaudi or share >= 1:
            self.relaxation.sigma = float("inf")
        else:
            span = settings.sigma_end - settings.sigma_start
            self.relaxation.sigma = settings.sigma_start + share * span

    def target(self, step: int) -> int:
        """Return the cost allowed at a step: cubic from the start's cost to the budget."""
        left = max(0.0, 1 - step / self.scheduled)
        return self.constraint.budget + int(
            max(0, self.start_cost - self.constraint.budget) * left**3
        )

    def after_backward(self, step: int) -> None:
        """Take note of what the loss would miss."""
        if self.settings.metric == "gradient" and step < self.steps:
            for layer in self.layers:
                observe_gradient(layer, keep=MEMORY)

    @torch.no_grad()
    def after_step(self, step: int, structural_rate: float) -> None:
        """Keep supports admissible, shrink them, and hold the cost at the schedule's points.

        With the last step of the learning the budget is used up to its last step.
        """
        if step >= self.steps:
            return
        for layer in self.layers:
            for support in (layer.row_support, layer.column_support):
                support[:, 0].clamp_(0, 1)
                support[:, 1].remainder_(1)
        if self.settings.gaudi and self.settings.shrink:
            self._proximal_step(self.settings.shrink * structural_rate)
        is_last = step == self.steps - 1
        if is_last:
            self._settle()
        elif step % INTERVAL == INTERVAL - 1:
            self._hold(self.target(step))

    def _settle(self) -> None:
        """Use up the budget, or of it what measuring finds to be within it."""
        constraint = self.constraint
        measured = constraint.excess
        if measured is None:
            self._fill(constraint.budget)
            return
        before = [layer.rectangles() for layer in self.layers]

        def attempt(target: int) -> tuple[list[tuple[Tensor, Tensor]], int]:
            self._set(before)
            self._fill(target)
            return [layer.rectangles() for layer in self.layers], measured(self.layers)

        found = tightest(constraint.budget, attempt)
        if found is None:
            raise BudgetUnreachable("budget", TOO_LONG)
        self._set(found)

    def _set(self, rectangles: Sequence[tuple[Tensor, Tensor]]) -> None:
        for layer, (rows, columns) in zip(self.layers, rectangles, strict=True):
            layer.set_rectangles(rows, columns)

    def _fill(self, budget: int) -> None:
        self._hold(budget)
        fill_groups(self.layers, self.constraint.weights, budget, pieces=self.settings.pieces)

    def _hold(self, target: int) -> None:
        weights = self.constraint.weights
        self._measure()
        if self.settings.metric == "uniform":
            shrink_uniformly(self.layers, weights, target)
        else:
            shrink_to(self.layers, weights, target, pieces=self.settings.pieces)

    def _measure(self) -> None:
        """Bring the saliencies up to date with the present factors."""
        if self.settings.metric == "curvature":
            for layer, p in zip(self.layers, self.profiles, strict=True):
                measure_curvature(layer, p)

    def _proximal_step(self, strength: float) -> None:
        """Soft-threshold every width by its cost over its saliency, while the cost must fall."""
        if relaxed_cost(self.layers, self.constraint.weights) <= self.constraint.budget:
            return
        ratios = [self._cost_over_saliency(i) for i in range(len(self.layers))]
        # Where most groups are dead the median is zero, and their own ratio would be 0 / 0.
        typical = torch.cat(ratios).median().clamp(min=SMALLEST)
        for layer, ratio in zip(self.layers, ratios, strict=True):
            threshold = strength * (ratio / typical).clamp(max=10)
            for support in (layer.row_support, layer.column_support):
                support[:, 0].sub_(threshold).clamp_(min=0)

    def _cost_over_saliency(self, index: int) -> Tensor:
        layer, weight = self.layers[index], self.constraint.weights[index]
        if self.settings.metric == "uniform":
            return torch.ones_like(layer.whole_saliency)
        cost = group_cost(*layer.rectangles(), layer.group) * weight
        return cost / (layer.whole_saliency + SMALLEST)


@torch.no_grad()
def shrink_uniformly(layers: Sequence[RelaxedLinear], weights: Sequence[int], target: int) -> None:
    """Shrink every width by the least common threshold that brings the cost to the target."""
    if relaxed_cost(layers, weights) <= target:
        return
    widths = [(m.row_support[:, 0], m.column_support[:, 0]) for m in layers]
    before = [[width.clone() for width in pair] for pair in widths]
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        _set_widths(widths, before, middle)
        low, high = (low, middle) if relaxed_cost(layers, weights) <= target else (middle, high)
    _set_widths(widths, before, high)


def _set_widths(
    widths: Sequence[Sequence[Tensor]], before: Sequence[Sequence[Tensor]], threshold: float
) -> None:
    for pair, old in zip(widths, before, strict=True):
        for width, value in zip(pair, old, strict=True):
            width.copy_((value - threshold).clamp(min=0))
