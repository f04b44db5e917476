"""Where a candidate begins: the reference with relaxed layers, at a multiple of the budget."""

import copy

import torch
from torch import nn

from models.spec import LayerSpec
from search.alternatives import Mixture, Start, allocate_mixtures
from search.baselines import uniform_ranks
from search.linearised import longest_rank
from search.profile import Awareness, Profile
from search.progress import Progress, Silent
from search.relaxation import Relaxation, RelaxedLinear
from search.resolved import ResolvedSearch
from search.spec import LearnerSettings


def starts(
    measured: Profile,
    resolved: ResolvedSearch,
    settings: LearnerSettings,
    progress: Progress | None = None,
) -> list[Start]:
    """Allocate the start's cost: alternatives where they compete, and whole groups of terms.

    Raises StoppedError between two layers.
    """
    cost = min(int(settings.start_excess * resolved.budget), resolved.dense_cost)
    aware = awareness(settings)
    if settings.structures in ("auto", "rectangles"):
        ranks = start_ranks(measured, resolved, settings)
        return [
            Start(Mixture(None, 0, p.terms(aware), p.errors(aware)), rank)
            for p, rank in zip(measured.layers, ranks, strict=True)
        ]
    found = allocate_mixtures(measured, resolved, cost, aware, progress or Silent())
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
    reference: nn.Module,
    measured: Profile,
    resolved: ResolvedSearch,
    settings: LearnerSettings,
    progress: Progress | None = None,
) -> tuple[nn.Module, Relaxation]:
    """Return a copy of the reference whose eligible layers are relaxed low-rank terms.

    Beside them stands an alternative where the allocation found that it pays.
    """
    network = copy.deepcopy(reference)
    layers = {}
    for p, start in zip(
        measured.layers, starts(measured, resolved, settings, progress), strict=True
    ):
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
