"""What may stand beside a layer's low-rank terms at the start, and what each choice spoils.

An alternative A and the terms of the rest, W - A, are fitted in turns, so that each takes what the
other cannot express. The terms of all ranks, and their harms, then follow from one decomposition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from models.cost import Counted, layer_cost, layer_weight
from models.structured.base import StructuredLinear
from models.structured.build import project
from models.structured.curves import error_curve
from models.structured.low_rank import Decomposition
from models.structures import Structure
from models.structures.sizes import CLOSED_KINDS, Kind, largest_within
from search.allocate import Item, allocate
from search.profile import Awareness, LayerProfile, Profile
from search.progress import Progress, followed
from search.resolved import ResolvedSearch

KEPT = (0, 1 / 3, 2 / 3)  # of a layer's ranks: an alternative gets what the others cost
# What may stand beside low-rank terms, as it is no sum of such itself.
BESIDE: tuple[Kind, ...] = (
    "block diagonal",
    "block sparse, tiles of 8",
    "block sparse, tiles of 16",
    "block sparse, tiles of 32",
    "block sparse, tiles of 64",
    "block low rank, 4 x 4",
    "BTT, 4 x 4",
    "BTT, 8 x 8",
    "Monarch, rank 1",
    "BLAST, 4 x 4",
    "BLAST, 16 x 16",
    "Kronecker sum",
    "einsum, BTT point",
    "diagonals",
    "group and shuffle",
    "butterfly",
    "circulant",
    "tensor train",
)
ROUNDS = 3  # of fitting the alternative and the terms in turns


@dataclass(frozen=True, slots=True)
class Mixture:
    """An alternative, or none, and the low-rank terms of what it leaves of the matrix.

    `size` is its cost in numbers of the layer; `harms` are of the ranks from 0 up.
    """

    alternative: StructuredLinear | None
    size: int
    terms: Decomposition
    harms: list[float]


@dataclass(frozen=True, slots=True)
class Start:
    """One layer's part of an allocation."""

    mixture: Mixture
    rank: int


def allocate_mixtures(
    measured: Profile,
    resolved: ResolvedSearch,
    cost: int,
    aware: Awareness,
    progress: Progress,
) -> list[Start]:
    """Choose every layer's alternative for the least expected harm, and its rank at a cost.

    Alternatives leave whole or not at all, so they are chosen for the budget; what the cost allows
    beyond it goes to the ranks. Raises StoppedError between two layers.
    """
    kinds = [kind for kind in resolved.structures if kind in BESIDE]
    ranks, _ = measured.allocate_ranks(resolved, resolved.budget, aware)
    layers = list(zip(measured.layers, ranks, strict=True))
    choices = [
        mixtures(p, resolved.counted, rank, aware, kinds)
        for p, rank in followed(layers, progress, "start", unit="layer")
    ]
    chosen = _allocated(measured, resolved, resolved.budget, choices)
    if cost == resolved.budget:
        return chosen
    return _allocated(measured, resolved, cost, [[start.mixture] for start in chosen])


def _allocated(
    measured: Profile, resolved: ResolvedSearch, cost: int, choices: Sequence[Sequence[Mixture]]
) -> list[Start]:
    priced = [
        _worthwhile(p, resolved, found) for p, found in zip(measured.layers, choices, strict=True)
    ]
    chosen = allocate([[item for _, item in starts] for starts in priced], cost).chosen
    return [starts[index][0] for starts, index in zip(priced, chosen, strict=True)]


def mixtures(
    p: LayerProfile, quantity: Counted, rank: int, aware: Awareness, kinds: Sequence[Kind]
) -> list[Mixture]:
    """List the low-rank terms alone, and beside alternatives that leave them some of their cost."""
    sides = {"rows": p.layer.rows, "columns": p.layer.columns}
    found = [Mixture(None, 0, p.terms(aware), p.errors(aware))]
    for kind in kinds:
        for left in sorted({int(share * rank) for share in KEPT}):
            pair = alternated(
                kind,
                p.weight.double(),
                p.second_moment,
                macs=(rank - left) * sum(sides.values()),
                rank=left,
                decomposed=partial(p.decompose_rest, aware=aware),
            )
            if pair is None or not grows_by_ranks(pair[0].spec, **sides):
                continue
            alternative, terms = pair[0].to(p.weight.dtype), pair[1]
            layer = p.layer.model_copy(update={"structure": alternative.spec})
            cost = layer_cost(layer, quantity) // layer_weight(layer, quantity)
            found.append(Mixture(alternative, cost, terms, p.harms(terms, aware)))
    return found


def nearest(
    kind: Kind,
    target: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    macs: int,
) -> StructuredLinear | None:
    """Project a matrix on the best member of a kind within so many MACs, if there is any."""
    rows, columns = target.shape
    structure: Structure | None
    if kind in CLOSED_KINDS:
        curve = error_curve(kind, target, second_moment)
        within = len(curve.macs) > 0 and int(curve.macs.min()) <= macs
        structure = curve.best_within(macs) if within else None
    else:
        structure = largest_within(kind, rows=rows, columns=columns, budget=macs)
    return None if structure is None else project(target, structure, second_moment=second_moment)


@torch.no_grad()
def alternated(
    kind: Kind,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    *,
    macs: int,
    rank: int,
    decomposed: Callable[[Tensor], Decomposition],
) -> tuple[StructuredLinear, Decomposition] | None:
    """Fit a member and so many terms in turns, beginning with either; None if no member fits.

    The better pair is returned, with the terms of every rank.
    """
    found: list[tuple[float, StructuredLinear, Decomposition]] = []
    starts = [weight, weight - _product(decomposed(weight), rank)] if rank else [weight]
    for index in range(len(starts) + ROUNDS - 1 if rank else 1):
        # Both orders are tried once; then the better goes on.
        if index < len(starts):
            rest = starts[index]
        else:
            _, _, terms = min(found, key=lambda pair: pair[0])
            rest = weight - _product(terms, rank)
        member = nearest(kind, rest, second_moment, macs)
        if member is None:
            return None
        terms = decomposed(weight - member.to_dense())
        found.append((float(terms.energies[rank:].sum()), member, terms))
    _, best, terms = min(found, key=lambda pair: pair[0])
    return best, terms


def _product(terms: Decomposition, rank: int) -> Float[Tensor, "rows columns"]:
    return terms.row_factor[:, :rank] @ terms.column_factor[:rank]


def grows_by_ranks(structure: Structure, *, rows: int, columns: int) -> bool:
    """Whether its next size costs no less than one more rank, with which a budget is used up."""
    now = structure.mac_count(rows=rows, columns=columns)
    steps = (
        larger.mac_count(rows=rows, columns=columns) - now
        for larger in structure.larger(rows=rows, columns=columns)
    )
    return all(step >= rows + columns for step in steps if step > 0)


def _worthwhile(
    p: LayerProfile, resolved: ResolvedSearch, found: Sequence[Mixture]
) -> list[tuple[Start, Item]]:
    """Keep what does less harm than all that is cheaper; low rank needs at least one rank."""
    weight = layer_weight(p.layer, resolved.counted)
    every = sorted(
        (
            (
                Start(mixture, rank),
                Item(weight * mixture.size + resolved.low_rank(p.layer, rank), harm),
            )
            for mixture in found
            for rank, harm in enumerate(mixture.harms)
            if rank or mixture.alternative is not None
        ),
        key=lambda pair: (pair[1].cost, pair[1].error),
    )
    least = accumulate((item.error for _, item in every), min, initial=float("inf"))
    return [pair for pair, before in zip(every, least, strict=False) if pair[1].error < before]
