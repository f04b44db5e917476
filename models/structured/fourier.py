"""Correlations that wrap around, by Fourier transforms in single precision or better."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def spectrum(x: Float[Tensor, "*batch size"], length: int) -> Complex[Tensor, "*batch frequencies"]:
    """The transform of numbers padded with zeros, in float32 at least: none is in half."""
    exact = x if x.dtype in {torch.float32, torch.float64} else x.float()
    if x.numel() == 0:  # MKL refuses an empty batch
        return exact.new_zeros(*x.shape[:-1], length // 2 + 1).to(exact.dtype.to_complex())
    found: Tensor = torch.fft.rfft(exact, n=length)
    return found


def signal(
    frequencies: Complex[Tensor, "*batch frequencies"], length: int
) -> Float[Tensor, "*batch length"]:
    """The real numbers of this length with this transform."""
    if frequencies.numel() == 0:
        return frequencies.real.new_zeros(*frequencies.shape[:-1], length)
    found: Tensor = torch.fft.irfft(frequencies, n=length)
    return found


def as_called(y: Float[Tensor, "*shape"], x: Float[Tensor, "*input"]) -> Float[Tensor, "*shape"]:
    """In the dtype of the input, which under autocast is that of its matrix products."""
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return y.to(torch.get_autocast_dtype(device))
    return y.to(x.dtype)


def folded(
    y: Float[Tensor, "*batch length"], size: int, *, sign: int
) -> Float[Tensor, "*batch size"]:
    """A correlation of numbers padded with zeros, its negative lags wrapped around.

    y[..., u] holds the lag u, and y[..., length - u] the lag -u; nothing is left to wrap where the
    length is the size already.
    """
    if y.shape[-1] == size:
        return y
    return y[..., :size] + sign * y[..., y.shape[-1] - size :]
