"""The Gaussian-Dirichlet mask: a cyclic box, differentiable in its width and location.

Lee & Kim, ICLR 2024, arXiv 2310.18882. Notation: n the length, k = 0..n/2 a frequency, w and l
width and location in fractions of n, ^ the real Fourier transform.

    M_k = w sinc(k w) / sinc(k/n) exp(-2 pi i k l + pi i k (1/n - w)) exp(-k^2 / (2 sigma^2))
        = (edge_k(l) - edge_k(l + w)) / (2 pi i k),  M_0 = w,
    edge_k(e) = exp(2 pi i k (1/(2n) - e)) exp(-k^2 / (2 sigma^2)) / sinc(k/n)

so that dM_k/dw = edge_k(l + w) and dM_k/dl = edge_k(l + w) - edge_k(l), exact at w = 0 too.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def gaudi_mask(
    width: Float[Tensor, "*terms"],
    location: Float[Tensor, "*terms"],
    length: int,
    sigma: float = math.inf,
) -> Float[Tensor, "*terms length"]:
    """Boxes of `width` growing to the right from `location`, both in fractions of the length.

    sigma, in DFT bins, smooths by length / (2 pi sigma) samples; at infinity, widths and locations
    of whole samples give exact zeros and ones. All terms of one length belong in one call.
    """
    mask: Tensor = _GaudiMask.apply(width, location, length, sigma)  # type: ignore[no-untyped-call]
    return mask


def round_to_samples(fraction: Float[Tensor, "*terms"], length: int) -> Float[Tensor, "*terms"]:
    """Round to whole samples of the length, and let the gradient through unchanged."""
    return fraction + ((fraction * length).round() / length - fraction).detach()


class _GaudiMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, width: Tensor, location: Tensor, length: int, sigma: float) -> Tensor:
        # Half precision cannot hold the phases.
        dtype = torch.promote_types(width.dtype, torch.float32)
        wide, start = width.to(dtype), location.to(dtype)
        frequency = torch.arange(length // 2 + 1, dtype=dtype, device=width.device)
        spectrum = torch.exp(-(frequency**2) / (2 * sigma**2)) / torch.sinc(frequency / length)
        left = _edge(start, frequency, spectrum, length)
        right = _edge(start + wide, frequency, spectrum, length)
        box = (left - right) / (2j * math.pi * frequency.clamp(min=1))
        box[..., 0] = wide
        ctx.save_for_backward(left, right)
        ctx.length, ctx.dtype = length, width.dtype
        # norm="forward" leaves out the factor 1/n.
        mask: Tensor = torch.fft.irfft(box, length, norm="forward")
        return mask.to(width.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right = ctx.saved_tensors
        spectrum = torch.fft.rfft(gradient.to(left.real.dtype))
        # All frequencies but zero and, for even lengths, the last stand for their mirror images.
        spectrum[..., 1 : (ctx.length + 1) // 2] *= 2
        by_right = (right * spectrum.conj()).real.sum(-1)
        by_left = (left * spectrum.conj()).real.sum(-1)
        return by_right.to(ctx.dtype), (by_right - by_left).to(ctx.dtype), None, None


def _edge(position: Tensor, frequency: Tensor, spectrum: Tensor, length: int) -> Tensor:
    # Whole turns are dropped before the sine, which is exact only near zero.
    turns = (0.5 / length - position)[..., None] * frequency
    return torch.polar(spectrum.expand_as(turns), 2 * math.pi * (turns - turns.round()))
