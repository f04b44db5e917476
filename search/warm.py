"""What an earlier search's candidates can tell the sampler of a later one: plain values."""

import math
import statistics
from collections.abc import Mapping, Sequence

from models.frozen import Spec
from search.grid import is_drawable
from search.plan import PlannedTrial
from search.resolved import ResolvedSearch
from search.spec import LearnerSettings, SearchSpec
from search.trial import FinishedTrial

MOST = 1000  # candidates that one budget inherits: the best


class EarlierCandidate(Spec):
    """A complete candidate of an earlier search, for one budget of a later one.

    `comparable` says that its loss is what the later search would have found: same budget, same
    training. Otherwise only the order of the losses counts, and nothing else was measured alike.
    """

    budget_index: int
    settings: LearnerSettings
    validation_loss: float
    comparable: bool
    metrics: Mapping[str, float | None] = {}


def inherited(
    spec: SearchSpec,
    resolved: ResolvedSearch,
    earlier_spec: SearchSpec,
    earlier: ResolvedSearch,
    candidates: Sequence[FinishedTrial],
) -> tuple[EarlierCandidate, ...]:
    """Give each budget the complete candidates of the earlier search's nearest, best first."""
    found: list[EarlierCandidate] = []
    for index, budget in enumerate(resolved.budgets):
        nearest = _nearest(budget / resolved.dense_cost, earlier)
        comparable = _alike(spec, earlier_spec) and (
            (resolved.quantity, resolved.eligible, budget)
            == (earlier.quantity, earlier.eligible, earlier.budgets[nearest])
        )
        complete = [
            EarlierCandidate(
                budget_index=index,
                settings=trial.settings,
                validation_loss=trial.validation_loss,
                comparable=comparable,
                metrics=dict(trial.metrics) if comparable else {},
            )
            for trial in candidates
            if trial.state == "COMPLETE"
            and trial.planned.kind == "candidate"
            and not trial.planned.repeat
            and trial.planned.budget_index == nearest
            and trial.settings is not None
            and trial.validation_loss is not None
        ]
        found += sorted(complete, key=lambda one: one.validation_loss)[:MOST]
    return tuple(found)


def count_inside(earlier: Sequence[EarlierCandidate], spec: SearchSpec) -> int:
    """Count those that the sampler is told: whose settings lie in the new space."""
    return sum(is_drawable(one.settings, spec) for one in earlier)


def as_told(
    earlier: Sequence[EarlierCandidate], budget_index: int, known: Sequence[FinishedTrial]
) -> list[FinishedTrial]:
    """Return one budget's earlier candidates, numbered before any of its own.

    Losses that are not comparable are moved together, so that their median is that of the known.
    """
    own = [one for one in earlier if one.budget_index == budget_index]
    here = [t.validation_loss for t in known if t.validation_loss is not None]
    there = [one.validation_loss for one in own if not one.comparable]
    move = statistics.median(here) - statistics.median(there) if here and there else 0.0
    return [
        FinishedTrial(
            planned=PlannedTrial(index - len(own), "candidate", budget_index=budget_index),
            state="COMPLETE",
            settings=one.settings,
            validation_loss=one.validation_loss + (0.0 if one.comparable else move),
            curve=(),
            folder=None,
            metrics=one.metrics,
        )
        for index, one in enumerate(own)
    ]


def _nearest(share: float, earlier: ResolvedSearch) -> int:
    """Return the index of the budget whose share of dense is nearest by ratio."""
    shares = [budget / earlier.dense_cost for budget in earlier.budgets]
    return min(range(len(shares)), key=lambda index: abs(math.log(shares[index] / share)))


def _alike(spec: SearchSpec, earlier: SearchSpec) -> bool:
    """Whether both train alike; references of other seeds differ."""
    return (spec.training, spec.compute.epochs, spec.compute.reference_epochs, spec.seed) == (
        *(earlier.training, earlier.compute.epochs, earlier.compute.reference_epochs, earlier.seed),
    )
