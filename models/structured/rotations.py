"""Rotations: orthogonal matrices of determinant one, as Cayley maps (I + A)^-1 (I - A), A skew."""

import torch
from jaxtyping import Float
from torch import Tensor

# A rotation by half a turn has no A: turned on by this much, it has a large one.
NUDGE = 1e-5


def skew_size(side: int) -> int:
    """How many numbers fix a skew matrix."""
    return side * (side - 1) // 2


def cayley(skews: Float[Tensor, "*batch size"], side: int) -> Float[Tensor, "*batch side side"]:
    """The rotations of skew matrices given by their upper halves, in single precision at least."""
    upper = skews.new_zeros(*skews.shape[:-1], side * side)
    row, column = torch.triu_indices(side, side, 1, device=skews.device)
    upper = upper.index_copy(-1, row * side + column, skews)
    upper = upper.reshape(*skews.shape[:-1], side, side)
    skew = (upper - upper.mT).to(torch.promote_types(skews.dtype, torch.float32))
    identity = torch.eye(side, dtype=skew.dtype, device=skew.device)
    found: Tensor = torch.linalg.solve(identity + skew, identity - skew).to(skews.dtype)
    return found


def inverse_cayley(
    rotations: Float[Tensor, "*batch side side"], generator: torch.Generator
) -> Float[Tensor, "*batch size"]:
    """The upper halves of the skew matrices whose rotations these are, or are very nearly."""
    side = rotations.shape[-1]
    identity = torch.eye(side).to(rotations)
    # Only rotations by half a turn, which the Cayley map never reaches, are nudged.
    smallest = torch.linalg.svdvals(identity + rotations)[..., -1:, None]
    noise = torch.randn(*rotations.shape[:-2], skew_size(side), generator=generator)
    nudged = rotations @ cayley(NUDGE * noise.to(rotations), side)
    rotations = torch.where(smallest < NUDGE, nudged, rotations)
    skew = torch.linalg.solve(identity + rotations, identity - rotations)
    row, column = torch.triu_indices(side, side, 1, device=skew.device)
    upper: Tensor = (skew[..., row, column] - skew[..., column, row]) / 2
    return upper


def nearest_rotation(
    matrices: Float[Tensor, "*batch side side"],
) -> Float[Tensor, "*batch side side"]:
    """The rotations nearest to matrices: polar factors, unless those reflect.

    Then the weakest direction is turned over (Kabsch, Acta Crystallographica 1976).
    """
    left, _, right = torch.linalg.svd(matrices)
    sign = torch.linalg.det(left @ right).sign()
    left = torch.cat([left[..., :-1], left[..., -1:] * sign[..., None, None]], -1)
    found: Tensor = left @ right
    return found
