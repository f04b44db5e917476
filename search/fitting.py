"""The best structure of a single matrix: every kind and sum within a cost, fitted."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.cost import layer_cost
from models.spec import LayerSpec
from models.structured.base import StructuredLinear
from models.structured.build import project
from models.structured.descent import descend
from models.structured.low_rank import LowRankLinear, decompose
from models.structured.sums import SumLinear
from models.structures.sizes import KINDS, Kind
from search.alternatives import BESIDE, alternated, nearest
from search.progress import Progress, followed
from search.resolved import ResolvedSearch
from search.spec import Space

RESTARTS = 3
FINALISTS = 4  # structures that are fitted from all starts
STEPS = 200  # of descent, at most, from each start; the best goes on later
EXACT = 1e-9  # relative squared error: nothing can be better
# What is added to low rank unless the search names kinds, and which shares of the cost low rank
# gets: one rank at least.
QUICK: tuple[Kind, ...] = (
    "block diagonal",
    "block sparse, tiles of 8",
    "block sparse, tiles of 16",
    "block low rank, 4 x 4",
    "BTT, 4 x 4",
    "BTT, 8 x 8",
    "Kronecker sum",
    "diagonals",
)
SHARES = (0.0, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A layer and its relative squared error."""

    layer: StructuredLinear
    error: float


def best_fit(
    weight: Float[Tensor, "rows columns"],
    layer: LayerSpec,
    resolved: ResolvedSearch,
    *,
    seed: int,
    progress: Progress,
) -> StructuredLinear:
    """Return the member of any kind, or the sum with low rank, that is nearest to a matrix.

    All are projected once, and the best descended from several starts.
    Raises StoppedError between two fits.
    """
    found: list[Fitted] = []
    # A list of kinds that nobody has chosen is one for networks: a single matrix can try them all.
    asked = resolved.structures
    everything = asked == Space().structures
    singles = KINDS if everything else asked
    sums = QUICK if everything else tuple(kind for kind in asked if kind in BESIDE)
    macs = resolved.budget // layer.tokens
    for candidate in _members(weight, macs, singles, sums, progress):
        changed = layer.model_copy(update={"structure": candidate.spec})
        if layer_cost(changed, resolved.counted) <= resolved.budget:
            found.append(Fitted(candidate, relative_error(candidate, weight)))
            if found[-1].error < EXACT:
                return candidate
    finalists = sorted(found, key=lambda one: one.error)[:FINALISTS]
    best = [
        restarted(one, weight, seed=seed)
        for one in followed(finalists, progress, "descent", unit="structure")
    ]
    return min(best, key=lambda one: one.error).layer


def restarted(start: Fitted, weight: Float[Tensor, "rows columns"], *, seed: int) -> Fitted:
    """Return the best of some starts of a structure, each descended most of its way."""
    attempts = [start.layer]
    for attempt in range(1, RESTARTS):
        generator = torch.Generator().manual_seed(seed + attempt)
        other = project(weight, start.layer.spec, generator=generator)
        if math.isclose(relative_error(other, weight), start.error, rel_tol=1e-6):
            break  # a closed form, which draws nothing
        attempts.append(other)
    for one in attempts:
        descend(one, weight, steps=STEPS)
    return min(
        (Fitted(one, relative_error(one, weight)) for one in attempts), key=lambda one: one.error
    )


@torch.no_grad()
def relative_error(layer: StructuredLinear, weight: Float[Tensor, "rows columns"]) -> float:
    """The squared error as a share of the matrix's squared norm."""
    whole = float(weight.double().square().sum())
    left = float((weight - layer.to_dense()).double().square().sum())
    return left / whole if whole else 0.0


def _members(
    weight: Float[Tensor, "rows columns"],
    macs: int,
    singles: Sequence[Kind],
    sums: Sequence[Kind],
    progress: Progress,
) -> Iterator[StructuredLinear]:
    """Yield the nearest of every kind, and sums with low rank, within so many MACs."""
    attempts = [(kind, False) for kind in singles] + [(kind, True) for kind in sums]
    for kind, with_low_rank in followed(attempts, progress, "fitting", unit="kind"):
        if with_low_rank:
            yield from _sums(weight, kind, macs)
        elif (member := nearest(kind, weight, None, macs)) is not None:
            yield member


def _sums(
    weight: Float[Tensor, "rows columns"], kind: Kind, macs: int
) -> Iterator[StructuredLinear]:
    """Yield a kind's sums with low rank, which gets what the other leaves of the cost."""
    rows, columns = weight.shape
    whole = macs // (rows + columns)
    for left in sorted({max(1, round(share * whole)) for share in SHARES}):
        pair = alternated(
            kind,
            weight.double(),
            None,
            macs=macs - left * (rows + columns),
            rank=left,
            decomposed=decompose,
        )
        if pair is None:
            continue
        other, terms = pair
        unused = macs - other.spec.mac_count(rows=rows, columns=columns)
        rank = min(unused // (rows + columns), rows, columns)
        smooth = LowRankLinear.from_factors(
            terms.row_factor[:, :rank].to(weight.dtype),
            terms.column_factor[:rank].to(weight.dtype),
        )
        yield SumLinear.of([smooth, other.to(weight.dtype)], bias=None)
