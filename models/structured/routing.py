"""Routing: which experts an input uses, and the inputs of each expert laid out side by side."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

# Of the auxiliary loss in a training loss, and of its z-loss beside the balance.
AUXILIARY_WEIGHT = 0.01
Z_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Layout:
    """Inputs in tiles of one length, each of one expert, some with room left at their end.

    No input is dropped. For the compiler and the exporter every shape follows from how many inputs
    there are, and not from where they go: some tiles may then be empty.
    """

    expert: Int[Tensor, " tiles"]
    source: Int[Tensor, "tiles length"]  # the choice (input times active, plus place) to compute
    slot: Int[Tensor, " choices"]  # where each choice is, in the tiles one after the other


def lay_out(chosen: Int[Tensor, "inputs active"], *, experts: int, length: int) -> Layout:
    """Sort the choices by their expert, and start a new tile with each expert."""
    flat = chosen.flatten()
    numbers = torch.arange(experts, device=flat.device)
    counts = (flat[:, None] == numbers).sum(0)
    used = (counts + length - 1) // length
    ends = used.cumsum(0)
    order = flat.argsort(stable=True)
    expert = flat[order]
    place = torch.arange(flat.shape[0], device=flat.device) - (counts.cumsum(0) - counts)[expert]
    slot = (ends - used)[expert] * length + place
    # As many tiles as the worst case needs, where the number may not depend upon the choices.
    tiles = (flat.shape[0] + experts * (length - 1)) // length
    if not torch.compiler.is_compiling():
        tiles = int(ends[-1])
    source = flat.new_zeros(tiles * length).scatter(0, slot, order)
    owner = torch.searchsorted(ends, torch.arange(tiles, device=flat.device), right=True)
    return Layout(
        expert=owner.clamp(max=experts - 1),
        source=source.view(tiles, length),
        slot=torch.empty_like(slot).scatter(0, order, slot),
    )


def route(
    logits: Float[Tensor, "inputs experts"], active: int
) -> tuple[Float[Tensor, "inputs active"], Int[Tensor, "inputs active"]]:
    """The softmax over the chosen, and which are chosen: those of the largest logits."""
    kept, chosen = logits.topk(active, dim=-1)
    return kept.softmax(-1), chosen


def auxiliary_loss(logits: Float[Tensor, "inputs experts"], active: int) -> Float[Tensor, ""]:
    """What keeps the router balanced and its logits small, weighted to be added to a loss.

    The load balance is experts times the sum over them of (share of the choices) x (mean
    probability), 1 where all are used alike (Fedus et al., arXiv 2101.03961); the z-loss is the
    mean squared log-sum-exp (Zoph et al., arXiv 2202.08906). No inputs add nothing.
    """
    experts = logits.shape[-1]
    logits = logits.flatten(0, -2).float() if logits.dtype.itemsize < 4 else logits.flatten(0, -2)
    _, chosen = route(logits, active)
    inputs = max(1, logits.shape[0])
    share = functional.one_hot(chosen, experts).to(logits.dtype).sum((0, 1)) / (inputs * active)
    balance = experts * (share * logits.softmax(-1).sum(0) / inputs).sum()
    z_loss = logits.logsumexp(-1).square().sum() / inputs
    return AUXILIARY_WEIGHT * (balance + Z_WEIGHT * z_loss)
