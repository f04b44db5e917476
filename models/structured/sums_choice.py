"""What a sum of low rank and blocks does with a budget: its shares, and the places of its tiles."""

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured import block_sparse
from models.structured.build import project
from models.structured.checks import check_target
from models.structured.low_rank import LARGE
from models.structured.output_error import output_energy
from models.structures import BlockSparse, Sum
from models.structures.sizes import SumKind, sums_within

ROUNDS = 2  # of projecting the parts in turn, enough to see which division is best


def choose_sum(
    kind: SumKind,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    budget: int,
    generator: torch.Generator,
) -> Sum | None:
    """The division of the budget that leaves least, its tiles where low rank leaves most."""
    check_target(weight, second_moment)
    rows, columns = weight.shape
    divided = sums_within(kind, rows=rows, columns=columns, budget=budget)
    target = weight.detach().double()
    moment = None if second_moment is None else second_moment.double()
    if moment is not None and target.numel() >= LARGE:
        # Seconds for each round: of C only the size of each input is seen, until the fit itself.
        target, moment = target * moment.diagonal().clamp(min=0).sqrt(), None
    tried = [_alternated(one, target, moment, generator) for one in divided]
    return min(tried, key=lambda pair: pair[1])[0] if tried else None


def _alternated(
    start: Sum, weight: Tensor, moment: Tensor | None, generator: torch.Generator
) -> tuple[Sum, float]:
    """The sum with its tiles chosen, and the (output) error that a few rounds leave."""
    low_rank, other = start.parts
    best, least = start, torch.inf
    rest = weight
    for _ in range(ROUNDS):
        smooth = project(rest, low_rank, second_moment=moment, generator=generator.clone_state())
        left = weight - smooth.to_dense().detach()
        if isinstance(other, BlockSparse):
            curve = block_sparse.error_curve(left, moment, tile=other.tile)
            places = curve.best_within(len(other.positions) * other.tile**2)
            assert isinstance(places, BlockSparse)
            other = places
        blocks = project(left, other, second_moment=moment, generator=generator.clone_state())
        found = blocks.to_dense().detach()
        error = float(output_energy(left - found, moment))
        if error < least:
            best, least = Sum(parts=(low_rank, other)), error
        rest = weight - found
    return best, least
