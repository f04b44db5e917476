"""What holds for the Gaussian-Dirichlet mask, at any width, location, length and sigma."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.structured.mask import gaudi_mask, round_to_samples

SIGMAS = (1.0, 5.0, math.inf)
FRACTIONS = st.floats(0, 1, allow_subnormal=False)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def published(width: Tensor, location: Tensor, length: int, sigma: float) -> Tensor:
    """The formula as printed, in plain differentiable operations."""
    k = torch.arange(length // 2 + 1, dtype=width.dtype)
    size = width * torch.sinc(k * width) / torch.sinc(k / length)
    size = size * torch.exp(-(k**2) / (2 * sigma**2))
    angle = math.pi * (-2 * k * location + k * (1 / length - width))
    mask: Tensor = torch.fft.irfft(size * torch.exp(1j * angle), length, norm="forward")
    return mask


def normal_differences(width: float, location: float, length: int, sigma: float) -> Tensor:
    """The same box in the spatial domain: where a normal variable would fall, wrapped."""
    deviation = length / (2 * math.pi * sigma)
    sample = torch.arange(length, dtype=torch.float64) + 0.5
    return sum(
        (
            torch.special.ndtr((sample - (location + turn) * length) / deviation)
            - torch.special.ndtr((sample - (location + width + turn) * length) / deviation)
            for turn in range(-3, 4)
        ),
        start=torch.zeros(length, dtype=torch.float64),
    )


@given(FRACTIONS, FRACTIONS, st.integers(1, 40), st.sampled_from(SIGMAS))
def test_values_and_gradients_are_the_published_formula_s(
    width: float, location: float, length: int, sigma: float
) -> None:
    results = []
    for function in (gaudi_mask, published):
        w, at = scalar(width).requires_grad_(), scalar(location).requires_grad_()
        mask = function(w, at, length, sigma)
        probe = torch.linspace(-1, 2, length, dtype=torch.float64) ** 2
        results.append((mask, *torch.autograd.grad((mask * probe).sum(), (w, at))))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_gradients_pass_gradcheck() -> None:
    width = torch.tensor([[0.0, 0.3], [1.0, 0.25]], dtype=torch.float64, requires_grad=True)
    location = torch.tensor([[0.9, 0.0], [0.41, 0.75]], dtype=torch.float64, requires_grad=True)
    for length in (1, 7, 8):
        for sigma in SIGMAS:
            assert torch.autograd.gradcheck(
                lambda wide, start, n=length, s=sigma: gaudi_mask(wide, start, n, s),
                (width, location),
            )


@given(st.integers(1, 64), st.data())
def test_whole_samples_at_sigma_infinity_give_a_cyclic_box(
    length: int, data: st.DataObject
) -> None:
    count, start = data.draw(st.integers(0, length)), data.draw(st.integers(0, length - 1))
    box = torch.zeros(length, dtype=torch.float64)
    box[(start + torch.arange(count)) % length] = 1
    mask = gaudi_mask(scalar(count / length), scalar(start / length), length)
    torch.testing.assert_close(mask, box, rtol=0, atol=1e-9)


@given(FRACTIONS, FRACTIONS, st.integers(1, 64), st.sampled_from(SIGMAS))
def test_a_mask_sums_to_its_width_in_samples(
    width: float, location: float, length: int, sigma: float
) -> None:
    total = gaudi_mask(scalar(width), scalar(location), length, sigma).sum().item()
    assert math.isclose(total, width * length, abs_tol=1e-9)


@given(FRACTIONS, st.integers(1, 64), st.sampled_from(SIGMAS))
def test_full_width_is_all_ones(location: float, length: int, sigma: float) -> None:
    mask = gaudi_mask(scalar(1.0), scalar(location), length, sigma)
    torch.testing.assert_close(mask, torch.ones(length, dtype=torch.float64))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_zero_width_is_all_zeros_but_can_grow(sigma: float) -> None:
    width = scalar(0.0).requires_grad_()
    mask = gaudi_mask(width, scalar(0.25), 16, sigma)
    assert torch.equal(mask, torch.zeros_like(mask))
    # A pulse at the right edge, half a sample before index 4: samples 3 and 4 gain alike.
    slopes = torch.stack([torch.autograd.grad(m, width, retain_graph=True)[0] for m in mask])
    assert slopes.topk(2).indices.sort().values.tolist() == [3, 4]
    torch.testing.assert_close(slopes.sum(), scalar(16.0))


@given(FRACTIONS, FRACTIONS, st.integers(1, 64), st.integers(-70, 70), st.sampled_from(SIGMAS))
def test_moving_the_location_rotates_the_mask(
    width: float, location: float, length: int, steps: int, sigma: float
) -> None:
    moved = gaudi_mask(scalar(width), scalar(location + steps / length), length, sigma)
    rotated = gaudi_mask(scalar(width), scalar(location), length, sigma).roll(steps)
    torch.testing.assert_close(moved, rotated, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sigma", "tolerance"), [(5.0, 1e-4), (100.0, 2e-2)])
def test_a_smooth_mask_is_a_difference_of_normal_distributions(
    sigma: float, tolerance: float
) -> None:
    mask = gaudi_mask(scalar(0.3), scalar(0.8), 768, sigma)
    spatial = normal_differences(0.3, 0.8, 768, sigma)
    torch.testing.assert_close(mask, spatial, rtol=0, atol=tolerance)


def test_half_precision_is_computed_in_single() -> None:
    width, location = torch.tensor(0.25).bfloat16(), torch.tensor(0.875).bfloat16()
    mask = gaudi_mask(width, location, 512)
    assert mask.dtype == torch.bfloat16
    box = torch.zeros(512)
    box[448:], box[:64] = 1, 1
    torch.testing.assert_close(mask.float(), box, rtol=0, atol=1e-2)


def test_all_terms_of_a_length_are_one_call() -> None:
    width, location = torch.rand(2, 3), torch.rand(2, 3)
    batched = gaudi_mask(width, location, 12, 4.0)
    assert batched.shape == (2, 3, 12)
    torch.testing.assert_close(batched[1, 2], gaudi_mask(width[1, 2], location[1, 2], 12, 4.0))


def test_rounding_gives_whole_samples_and_lets_gradients_through() -> None:
    fraction = torch.tensor([0.0, 0.26, 0.99], requires_grad=True)
    rounded = round_to_samples(fraction, 10)
    torch.testing.assert_close(rounded, torch.tensor([0.0, 0.3, 1.0]))
    (gradient,) = torch.autograd.grad(rounded.sum(), fraction)
    torch.testing.assert_close(gradient, torch.ones(3))
