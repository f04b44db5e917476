"""Convolutions with groups of channels and some of the kernel's taps."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models.structured.convolution import patch_second_moment
from models.structured.sparse_convolution import SparseConv2d, error_curve
from models.structures.convolution import Convolution, SparseConvolution
from tests.compiling import assert_compiled_alike
from tests.convolving import dense_convolution


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def sparse_convolutions(draw: st.DrawFn) -> SparseConvolution:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, groups = pair(1, 3), draw(st.integers(1, 3))
    everywhere = list(product(range(kernel[0]), range(kernel[1])))
    return SparseConvolution(
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel=kernel,
        stride=pair(1, 3),
        padding=pair(0, 2),
        dilation=pair(1, 2),
        groups=groups,
        taps=tuple(sorted(draw(st.sets(st.sampled_from(everywhere), min_size=1)))),
    )


def drawn(spec: SparseConvolution) -> SparseConv2d:
    layer = SparseConv2d(spec, dtype=torch.float64)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert layer.bias is not None
    nn.init.constant_(layer.bias, 0.5)
    return layer


@settings(deadline=None)
@given(sparse_convolutions())
def test_forward_is_the_dense_convolution_and_costs_what_is_counted(
    spec: SparseConvolution,
) -> None:
    layer, x = drawn(spec), normal(2, spec.in_channels, 6, 7)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(y, dense_convolution(layer, x), rtol=1e-9, atol=1e-9)
    assert counter.get_total_flops() == 2 * 2 * spec.mac_count(height=6, width=7)
    stored = sum(value.numel() for value in layer.state_dict().values())
    assert stored == spec.parameter_count() + spec.out_channels
    assert SparseConvolution.model_validate_json(spec.model_dump_json()) == spec


@settings(deadline=None)
@given(sparse_convolutions(), st.booleans())
def test_a_member_is_projected_onto_itself(spec: SparseConvolution, aware: bool) -> None:
    layer = drawn(spec)
    moment = patch_second_moment(normal(40, spec.in_channels, 6, 7), spec) if aware else None
    weight = layer.to_dense().detach()
    again = SparseConv2d.from_dense(weight, spec, bias=layer.bias, second_moment=moment)
    torch.testing.assert_close(again.to_dense(), weight, rtol=1e-3, atol=1e-4)


def test_depthwise_grouped_and_pointwise_are_corners() -> None:
    kernel = {"kernel": (3, 3), "padding": (1, 1), "in_channels": 8, "out_channels": 8}
    whole = tuple(product(range(3), range(3)))
    x = normal(2, 8, 5, 5)
    for groups in (8, 2):
        spec = SparseConvolution.model_validate(kernel | {"groups": groups, "taps": whole})
        layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups, dtype=torch.float64)
        found = SparseConv2d.from_dense(layer.weight, spec, bias=layer.bias)
        torch.testing.assert_close(found(x), layer(x))
        assert spec.macs_a_position() == 8 * (8 // groups) * 9
    spec = SparseConvolution.model_validate(kernel | {"taps": ((1, 1),)})
    pointwise = nn.Conv2d(8, 8, 1, dtype=torch.float64)
    weight = functional.pad(pointwise.weight, (1, 1, 1, 1))
    found = SparseConv2d.from_dense(weight, spec, bias=pointwise.bias)
    torch.testing.assert_close(found(x), pointwise(x))
    assert spec.macs_a_position() == 64


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_curve_is_the_error_of_every_projection(aware: bool, groups: int) -> None:
    shape = Convolution(in_channels=4, out_channels=8, kernel=(3, 2), groups=groups)
    weight, x = normal(8, 4 // groups, 3, 2), normal(30, 4, 6, 6, seed=1)
    x = functional.avg_pool2d(x, 2, stride=1)
    curve = error_curve(weight, shape, patch_second_moment(x, shape) if aware else None)
    exact = functional.conv2d(x, weight, groups=groups)
    for index, error in enumerate(curve.errors.tolist()):
        spec = curve.structure(index)
        assert spec.macs_a_position() == curve.macs[index]
        moment = patch_second_moment(x, shape) if aware else None
        layer = SparseConv2d.from_dense(weight, spec, second_moment=moment)
        if aware:
            real = (layer(x) - exact).square().sum() / exact.square().sum()
        else:
            rest = weight.square().sum() - layer.weight.square().sum()
            real = rest / weight.square().sum()
        assert float(real.detach()) == pytest.approx(error, abs=1e-5)
        if not aware:
            whole = error_curve(weight, shape, image=(9, 8))
            assert spec.mac_count(height=9, width=8) == whole.macs[index]
    assert curve.macs.diff().gt(0).all()
    assert curve.errors.diff().lt(0).all()
    assert curve.errors[-1] == pytest.approx(0, abs=1e-12)


def test_planted_groups_and_taps_are_found_exactly() -> None:
    spec = SparseConvolution(
        in_channels=6, out_channels=6, kernel=(3, 3), groups=3, taps=((0, 1), (1, 1), (2, 0))
    )
    parts = drawn(spec).to_dense().detach().unflatten(0, (3, 2))
    weight = torch.zeros(6, 6, 3, 3, dtype=torch.float64)
    for group in range(3):
        at = slice(2 * group, 2 * group + 2)
        weight[at, at] = parts[group]
    curve = error_curve(weight, Convolution(in_channels=6, out_channels=6, kernel=(3, 3)))
    assert curve.structure(len(curve.errors) - 1) == spec
    assert curve.errors[-1] == 0


def test_gradients_are_exact_and_the_layer_is_exported_and_compiled() -> None:
    spec = SparseConvolution(
        in_channels=4,
        out_channels=2,
        kernel=(3, 3),
        padding=(1, 0),
        groups=2,
        taps=((0, 0), (1, 2)),
    )
    layer, x = drawn(spec), normal(2, 4, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(layer, {"weight": weight}, (x,)),
        (x, layer.weight),
    )
    with torch.no_grad():
        batch = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
        program = torch.export.export(layer, (x,), dynamic_shapes=(batch,))
        larger = normal(5, 4, 9, 5)
        torch.testing.assert_close(program.module()(larger), layer(larger))
    assert_compiled_alike(layer, x.detach())


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ((), "at least one"),
        (((1, 1), (0, 0)), "sorted"),
        (((0, 3),), r"taps is \(0, 3\), but a kernel of 3 x 3 admits \(0, 0\) to \(2, 2\)"),
    ],
)
def test_taps_that_are_not_the_kernels_are_refused(
    taps: tuple[tuple[int, int], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SparseConvolution(in_channels=2, out_channels=2, kernel=(3, 3), taps=taps)


def test_a_weight_that_cannot_be_split_so_is_refused() -> None:
    spec = SparseConvolution(in_channels=6, out_channels=6, groups=2, taps=((0, 0),))
    with pytest.raises(ValueError, match="cannot be made of it"):
        SparseConv2d.from_dense(torch.zeros(6, 2, 1, 1), spec)
