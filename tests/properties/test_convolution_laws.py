"""What holds for convolutions of every structure, in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.structured.convolution import StructuredConv2d, patch_second_moment
from models.structured.output_error import output_error
from models.structures import BlockDiagonal, LowRank
from models.structures.convolution import Convolution
from tests.compiling import assert_compiled_alike
from tests.convolving import dense_convolution
from tests.properties.families import FAMILIES
from tests.properties.family import Family

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


@st.composite
def convolutions(draw: st.DrawFn, family: Family) -> Convolution:
    """One of the family; channels enough for it to fit a group's matrix."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), pair(1, 3)]))
    groups = draw(st.integers(1, 3))
    area = kernel[0] * kernel[1]
    rows = draw(st.integers(family.smallest, family.smallest + 3))
    inputs = draw(st.integers(-(-family.smallest // area), -(-family.smallest // area) + 2))
    return Convolution(
        in_channels=groups * inputs,
        out_channels=groups * rows,
        kernel=kernel,
        stride=pair(1, 3),
        padding=pair(0, 2),
        dilation=pair(1, 2),
        groups=groups,
        structure=draw(family.structures(rows, inputs * area)),
    )


def for_all(
    family: Family, check: Callable[[Convolution, int], None], *, examples: int = 15
) -> None:
    seeds = st.integers(0, 2**31)
    settings(max_examples=examples)(given(convolutions(family), seeds)(check))()


def drawn(spec: Convolution, seed: int) -> tuple[StructuredConv2d, Tensor]:
    """The layer, and two images that are large enough."""
    generator = torch.Generator().manual_seed(seed)
    layer = StructuredConv2d(spec, dtype=torch.float64)
    layer.reset_parameters(generator)
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias, generator=generator)
    x = torch.randn(2, spec.in_channels, 6, 7, generator=generator, dtype=torch.float64)
    return layer, x


@every_family
def test_forward_is_the_convolution_with_the_dense_weight(family: Family) -> None:
    def check(spec: Convolution, seed: int) -> None:
        layer, x = drawn(spec, seed)
        expected = dense_convolution(layer, x)
        torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
        assert tuple(expected.shape[2:]) == spec.output_size(height=6, width=7)
        assert layer(x[:0]).shape == (0, *expected.shape[1:])

    for_all(family, check)


@every_family
def test_numbers_and_macs_of_a_convolution_are_those_counted(family: Family) -> None:
    def check(spec: Convolution, seed: int) -> None:
        layer, x = drawn(spec, seed)
        stored = sum(value.numel() for value in layer.state_dict().values())
        assert stored == spec.parameter_count() + spec.out_channels
        assert layer.fan_ins().keys() | {"bias"} == dict(layer.named_parameters()).keys()
        if "a FLOP counter sees the MACs" not in family.exempt:
            # As in training: without gradients, what would only multiply padding may be left out.
            with FlopCounterMode(display=False) as counter:
                layer(x)
            assert counter.get_total_flops() == 2 * len(x) * spec.mac_count(height=6, width=7)

    for_all(family, check)


@every_family
def test_a_convolution_survives_json(family: Family) -> None:
    def check(spec: Convolution, _seed: int) -> None:
        assert Convolution.model_validate_json(spec.model_dump_json()) == spec

    for_all(family, check)


SMALL = [
    Convolution(in_channels=4, out_channels=6, kernel=(3, 2), groups=2, structure=LowRank(rank=2)),
    Convolution(in_channels=3, out_channels=4, kernel=(2, 2), structure=BlockDiagonal(blocks=2)),
    Convolution(in_channels=4, out_channels=4, stride=(2, 1), structure=BlockDiagonal(blocks=2)),
    Convolution(in_channels=4, out_channels=4, kernel=(3, 3), padding=(1, 1), groups=4),
]


@pytest.mark.parametrize("spec", SMALL)
def test_gradients_of_a_convolution_are_exact(spec: Convolution) -> None:
    layer, x = drawn(spec, 0)
    names, values = zip(*layer.named_parameters(), strict=True)

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (x,)
        )
        return found

    assert torch.autograd.gradcheck(forward, (x[:1, :, :4, :4].requires_grad_(), *values))


@pytest.mark.parametrize("spec", SMALL)
@pytest.mark.parametrize("aware", [False, True])
def test_a_member_is_projected_onto_itself(spec: Convolution, aware: bool) -> None:
    layer, x = drawn(spec, 1)
    weight = layer.to_dense().detach()
    moment = patch_second_moment(x, spec) if aware else None
    again = StructuredConv2d.from_dense(weight, spec, bias=layer.bias, second_moment=moment)
    torch.testing.assert_close(again(x), layer(x), rtol=1e-4, atol=1e-4)


@given(convolutions(FAMILIES[0]), st.integers(0, 2**31))
def test_the_second_moment_of_patches_gives_the_error_of_the_output(
    spec: Convolution, seed: int
) -> None:
    layer, x = drawn(spec, seed)
    moment = patch_second_moment(x, spec)
    matrices = layer.to_dense().detach().reshape(spec.groups, spec.rows, spec.columns)
    energy = sum(output_error(matrix, one) for matrix, one in zip(matrices, moment, strict=True))
    layer.bias = None
    actual = dense_convolution(layer, x).square().sum(1).mean()
    torch.testing.assert_close(torch.as_tensor(energy), actual.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spec", SMALL)
def test_a_convolution_is_exported_and_compiled(spec: Convolution) -> None:
    layer, x = drawn(spec, 2)
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (x.repeat(2, 1, 1, 1),), dynamic_shapes=(dynamic,))
    larger = torch.cat([x, x, x]).repeat(1, 1, 2, 1)
    torch.testing.assert_close(program.module()(larger), layer(larger))
    assert_compiled_alike(layer, x)


@pytest.mark.parametrize("spec", SMALL)
def test_half_precision_stays_half_precision(spec: Convolution) -> None:
    layer, x = drawn(spec, 3)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x.float()).dtype == torch.bfloat16
