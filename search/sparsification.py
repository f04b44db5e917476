"""Differentiable sparsification: gates that gradient descent sets to exactly zero, and opens again.

Notation: m_i >= 0, the magnitude of component i: |a_i| or the norm of group v_i; b, learned.
The threshold is t = sigmoid(b) sum_j m_j, the gate relu(m_i - t) (Lee, arXiv 1910.03201). All die
once sigmoid(b) >= max m / sum m, so t stays below the greatest magnitude whatever b is.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Of the greatest magnitude: the threshold never rises above, so that one stays alive.
CEILING = 0.95
START = 0.05  # of the mean magnitude: where a threshold begins, below all but the smallest


def starting_logit(components: int) -> float:
    """The logit b from which no component of about mean magnitude is dead: sigmoid(b) = .05 / n."""
    share = START / components
    return math.log(share / (1 - share))


def gates(
    values: Float[Tensor, "*batch components"], logit: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch components"]:
    """One gate for each component, exactly zero for what is below the threshold.

    The gradient of a live component is exact. A dead one's is the loss's wish for its gate times a
    slope in [1/e, 1], the steeper the nearer to the threshold: each learns of its own use.
    """
    # Unlike abs, this has a slope at zero, without which a component there would stay for ever.
    magnitudes = torch.where(values >= 0, values, -values)
    threshold = _threshold(magnitudes, logit)
    return _gated(magnitudes, magnitudes - threshold, magnitudes, threshold)


def normalised_gates(
    values: Float[Tensor, "*batch components"], logit: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch components"]:
    """Gates that sum to one, whatever the scale of the values; equal where all values are zero."""
    opened = gates(values, logit)
    total = opened.sum(-1, keepdim=True)
    nothing = total == 0
    shares = opened / torch.where(nothing, 1, total)
    return torch.where(nothing, 1 / values.shape[-1], shares)


def sparsified(
    groups: Float[Tensor, "*batch components members"], logit: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch components members"]:
    """Shorten every group by the threshold; a group that is no longer than it becomes zero.

    The gradient of a live group is exact. A dead one takes its output's gradient in all directions,
    sloped as in `gates`, so that it comes back the way the loss wants it.
    """
    magnitudes = torch.linalg.vector_norm(groups, dim=-1)
    threshold = _threshold(magnitudes, logit)
    lengths = torch.where(magnitudes > 0, magnitudes, 1)
    left = ((magnitudes - threshold) / lengths)[..., None] * groups
    return _gated(groups, left, magnitudes[..., None], threshold[..., None])


def p_norm(shares: Float[Tensor, "*batch components"], p: float = 0.5) -> Float[Tensor, "*batch"]:
    """(sum_i g_i^p)^(1/p) of normalised gates, to be made small: for p = 1/2, k equal gates give k.

    Normalised gates have one 1-norm, so p is below one. A dead gate is not pulled on: its slope
    would be infinite, and it is where it should be. Raises ValueError for another p.
    """
    if not 0 < p < 1:
        raise ValueError(f"p is {p}, but sparsity is rewarded between 0 and 1 only")
    live = shares > 0
    powers = torch.where(live, torch.where(live, shares, 1).pow(p), 0)
    return powers.sum(-1).pow(1 / p)


def _threshold(
    magnitudes: Float[Tensor, "*batch components"], logit: Float[Tensor, "*#batch"]
) -> Float[Tensor, "*batch 1"]:
    """t, below its ceiling; there the logit's gradient is still that of t, so that it can fall."""
    total, share = magnitudes.sum(-1, keepdim=True), torch.sigmoid(logit)[..., None]
    wanted = share * total
    ceiling = CEILING * magnitudes.amax(-1, keepdim=True)
    wish = share * total.detach()
    return torch.where(wanted <= ceiling, wanted, ceiling + (wish - wish.detach()))


def _gated(dead: Tensor, live: Tensor, magnitudes: Tensor, threshold: Tensor) -> Tensor:
    """Choose `live` above the threshold, else zero with a slope that `dead` receives.

    Only a component's own path has the surrogate slope: through the threshold, which all share, the
    derivative stays true, and the live ones' gradients with it.
    """
    tiny = torch.finfo(magnitudes.dtype).tiny
    slope = ((magnitudes - threshold) / threshold.clamp(min=tiny)).clamp(-1, 0).exp().detach()
    return torch.where(magnitudes > threshold, live, slope * (dead - dead.detach()))
