"""Butterflies: the transforms they stand for, and their recovery from a dense matrix."""

import math

import pytest
import torch
from scipy.linalg import circulant, hadamard
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.structured import ButterflyLinear
from models.structured.build import build_layer, project
from models.structured.butterfly_newton import Target, nodes, refined, strides
from models.structures import Butterfly

CLOSED = [
    Butterfly(numbers="complex"),
    Butterfly(numbers="complex", strides="decreasing", bit_reversal=True),
    Butterfly(blocks=2),
    Butterfly(blocks=2, strides="decreasing", bit_reversal=True),
]
LEVELS = 4
SIDE = 1 << LEVELS


def fourier_mixes() -> Tensor:
    """Each factor of decimation in time, (levels, pairs, 2, 2), strides increasing."""
    factors = []
    for level in range(LEVELS):
        lower = torch.arange(1 << level).double()
        twiddle = torch.exp(-1j * math.pi * lower / (1 << level))
        one = torch.ones_like(twiddle)
        mix = torch.stack([one, twiddle, one, -twiddle], -1)
        factors.append(mix.repeat(SIDE >> (level + 1), 1).reshape(-1, 2, 2))
    return torch.stack(factors)


def planted(structure: Butterfly, rows: int, mixes: Tensor) -> Tensor:
    """The dense matrix of these complex mixes, (copies, factors, pairs, 2, 2)."""
    layer = ButterflyLinear(structure, rows=rows, columns=SIDE, dtype=torch.float64)
    with torch.no_grad():
        layer.mixes.copy_(torch.stack([mixes.real, mixes.imag])[: len(layer.mixes)])
    return layer.to_dense().detach()


def dense_member(structure: Butterfly, rows: int, columns: int, *, is_drawn: bool) -> Tensor:
    """A matrix of rotations as they are drawn from scratch, or of normal numbers."""
    generator = torch.Generator().manual_seed(3)
    layer = build_layer(structure, rows=rows, columns=columns, bias=False, generator=generator)
    if not is_drawn:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.to_dense().detach()


def textbook(layer: ButterflyLinear) -> Tensor:
    """The product of the sparse factors, each built as a dense matrix, of one real copy."""
    side = layer.side
    found = torch.eye(side).double()
    bits = list(range(layer.levels))
    for index in range(layer.spec.blocks * layer.levels):
        block, step = divmod(index, layer.levels)
        upwards = (layer.spec.strides == "increasing") == (block % 2 == 0)
        stride = 1 << (bits if upwards else bits[::-1])[step]
        factor = torch.zeros(side, side).double()
        for pair, mix in enumerate(layer.mixes[0, 0, index].detach()):
            one = pair // stride * 2 * stride + pair % stride
            where = torch.tensor([one, one + stride])
            factor[where[:, None], where] = mix
        found = factor @ found
    return found


@pytest.mark.parametrize("side", [2, 8, 64, 128])
@pytest.mark.parametrize("strides", ["increasing", "decreasing"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_butterfly_is_the_product_of_its_sparse_factors(
    side: int, strides: str, blocks: int
) -> None:
    structure = Butterfly.model_validate({"strides": strides, "blocks": blocks})
    generator = torch.Generator().manual_seed(0)
    layer = build_layer(
        structure, rows=side, columns=side, generator=generator, dtype=torch.float64
    )
    assert isinstance(layer, ButterflyLinear)
    torch.testing.assert_close(layer.to_dense().detach(), textbook(layer))


def test_the_fourier_transform_is_a_complex_butterfly_after_a_bit_reversal() -> None:
    structure = Butterfly(numbers="complex", bit_reversal=True)
    mixes = fourier_mixes()
    turned = mixes.clone()
    turned[-1] *= -1j  # the real part of -i z is the imaginary part of z
    found = planted(structure, 2 * SIDE, torch.stack([mixes, turned]))
    fourier = torch.fft.fft(torch.eye(SIDE).double())
    torch.testing.assert_close(found, torch.cat([fourier.real, fourier.imag]))


def test_every_circulant_matrix_is_two_complex_butterflies() -> None:
    column = torch.randn(SIDE, generator=torch.Generator().manual_seed(0)).double()
    mixes = fourier_mixes()
    there = mixes.flip(0).transpose(-1, -2)
    back = mixes.conj() / 2
    order = torch.arange(SIDE).reshape((2,) * LEVELS).permute(3, 2, 1, 0).flatten()
    spectrum = torch.fft.fft(column)[order]
    back[0] = back[0] * spectrum.reshape(-1, 1, 2)
    structure = Butterfly(blocks=2, numbers="complex", strides="decreasing")
    found = planted(structure, SIDE, torch.cat([there, back])[None])
    torch.testing.assert_close(found, torch.from_numpy(circulant(column.numpy())))


@pytest.mark.parametrize("strides", ["increasing", "decreasing"])
def test_a_hadamard_matrix_is_found(strides: str) -> None:
    matrix = torch.from_numpy(hadamard(64)).double()
    structure = Butterfly.model_validate({"strides": strides})
    found = project(matrix, structure).to_dense()
    torch.testing.assert_close(found.detach(), matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (256, 64), (48, 200), (50, 47)])
def test_a_planted_butterfly_is_found(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = build_layer(Butterfly(), rows=rows, columns=columns, generator=generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    weight = layer.to_dense().detach()
    found = project(weight, Butterfly()).to_dense().detach()
    assert (found - weight).norm() < 1e-4 * weight.norm()


@pytest.mark.parametrize("structure", CLOSED, ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "is_drawn"),
    [(4, 4, False), (8, 8, True), (8, 8, False), (16, 16, False), (48, 16, True), (32, 32, True)],
)
def test_a_planted_complex_butterfly_and_a_product_of_two_real_ones_are_found(
    structure: Butterfly, rows: int, columns: int, is_drawn: bool
) -> None:
    weight = dense_member(structure, rows, columns, is_drawn=is_drawn)
    found = project(weight, structure).to_dense().detach()
    assert (found - weight).norm() < 1e-5 * weight.norm()


@pytest.mark.parametrize("blocks", [2, 3])
def test_a_small_planted_product_of_complex_butterflies_is_found(blocks: int) -> None:
    structure = Butterfly(blocks=blocks, numbers="complex")
    weight = dense_member(structure, 8, 8, is_drawn=True)
    found = project(weight, structure).to_dense().detach()
    assert (found - weight).norm() < 1e-4 * weight.norm()


@pytest.mark.parametrize("numbers", ["real", "complex"])
def test_gauss_newton_steps_never_raise_the_error(numbers: str) -> None:
    generator = torch.Generator().manual_seed(4)
    order = list(strides(3, 2, increasing=True))
    number = torch.float64 if numbers == "real" else torch.complex128
    mixes = torch.randn(len(order), 4, 2, 2, generator=generator, dtype=number)
    matrix = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    target = Target(matrix[None], torch.arange(8)[None] < 7, torch.arange(8)[None] < 5)

    def error(found: Tensor) -> float:
        product = torch.eye(8).to(found)
        for mix, stride in zip(found, order, strict=True):
            factor = torch.zeros_like(product)
            place = nodes(8, stride)
            factor[place[:, :, None], place[:, None, :]] = mix
            product = factor @ product
        real = product.real if product.is_complex() else product
        return float((real - matrix)[:7, :5].square().sum())

    errors = [error(refined(mixes[None], order, target, steps=steps)[0]) for steps in (0, 1, 5, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize("is_tall", [False, True])
def test_the_fourier_transform_is_found_by_complex_numbers_only(is_tall: bool) -> None:
    fourier = torch.fft.fft(torch.eye(SIDE).double())
    weight = torch.cat([fourier.real, fourier.imag]) if is_tall else fourier.real
    errors = [
        (project(weight, structure).to_dense().detach() - weight).norm() / weight.norm()
        for structure in (
            Butterfly(bit_reversal=True),
            Butterfly(numbers="complex", bit_reversal=True),
        )
    ]
    assert errors[1] < 1e-5
    assert errors[0] > 0.3


def test_merged_factors_multiply_by_their_block_sides() -> None:
    """Instead of 2 n for each of ten factors: 32 n for each of two runs of five."""
    layer = build_layer(
        Butterfly(), rows=1024, columns=1024, generator=torch.Generator().manual_seed(0)
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(3, 1024))
    assert counter.get_total_flops() == 2 * 3 * 2 * 32 * 1024
    assert layer.spec.mac_count(rows=1024, columns=1024) == 20 * 1024


def test_a_real_transforms_imaginary_half_costs_nothing_at_the_ends() -> None:
    square = {"rows": 16, "columns": 16}
    assert Butterfly(numbers="complex").mac_count(**square) == 2 * 16 * 4 * 3
    assert Butterfly(numbers="complex").parameter_count(**square) == 2 * 2 * 16 * 4
    assert Butterfly(numbers="complex").mac_count(rows=1, columns=2) == 4
