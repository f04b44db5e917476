"""What only structured convolutions do."""

import pytest
import torch
from torch import nn

from models.structured.convolution import StructuredConv2d, convolution_of, patch_second_moment
from models.structures import Dense, LowRank
from models.structures.convolution import Convolution


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
        nn.Conv2d(4, 6, (3, 5), padding="same"),
        nn.Conv2d(4, 6, (2, 5), padding="valid", bias=False),
    ],
)
def test_a_torch_convolution_is_taken_over_exactly(layer: nn.Conv2d) -> None:
    spec = convolution_of(layer, Dense())
    found = StructuredConv2d.from_dense(layer.weight, spec, bias=layer.bias)
    x = torch.randn(2, 4, 9, 8, generator=seeded())
    torch.testing.assert_close(found(x), layer(x))
    assert spec.parameter_count() == layer.weight.numel()


def test_borders_of_anything_but_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match="admits zeros"):
        convolution_of(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), Dense())
    with pytest.raises(ValueError, match="even size"):
        convolution_of(nn.Conv2d(2, 2, 2, padding="same"), Dense())


def test_an_image_smaller_than_the_kernel_is_refused() -> None:
    spec = Convolution(in_channels=1, out_channels=1, kernel=(3, 3), dilation=(2, 2))
    assert spec.output_size(height=5, width=6) == (1, 2)
    with pytest.raises(ValueError, match="the image is 4 x 6"):
        spec.mac_count(height=4, width=6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 2}, "groups is 2, but in_channels 3 and out_channels 6 admit 1, 3"),
        (
            {"in_channels": 4, "groups": 4},
            "groups is 4, but in_channels 4 and out_channels 6 admit 1, 2",
        ),
        ({"structure": LowRank(rank=4)}, "rank is 4, but a 6 x 3 matrix admits 1 to 3"),
        ({"kernel": (0, 1)}, "greater than 0"),
    ],
)
def test_a_convolution_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Convolution.model_validate({"in_channels": 3, "out_channels": 6, **fields})


def test_a_weight_of_another_shape_is_refused() -> None:
    spec = Convolution(in_channels=3, out_channels=6, kernel=(3, 3))
    with pytest.raises(ValueError, match="but the spec says"):
        StructuredConv2d.from_dense(torch.zeros(6, 3, 3, 2), spec)


def test_low_rank_is_two_convolutions() -> None:
    """No patch is written out: the only operations are the two."""
    spec = Convolution(in_channels=4, out_channels=6, kernel=(3, 3), structure=LowRank(rank=2))
    layer = StructuredConv2d(spec)
    layer.reset_parameters(seeded())
    program = torch.export.export(layer, (torch.randn(1, 4, 8, 8),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("conv2d" in name for name in called) == 2
    assert not any("im2col" in name for name in called)


def test_images_decide_what_a_low_rank_convolution_keeps() -> None:
    """Smooth images have patches of few dimensions; what they never show need not be kept."""
    weight = torch.randn(8, 2, 3, 3, generator=seeded()).double()
    noise = torch.randn(4, 2, 20, 20, generator=seeded(1)).double()
    x = nn.functional.avg_pool2d(noise, 5, stride=1)
    spec = Convolution(in_channels=2, out_channels=8, kernel=(3, 3), structure=LowRank(rank=4))
    exact = nn.functional.conv2d(x, weight)
    plain = StructuredConv2d.from_dense(weight, spec)
    aware = StructuredConv2d.from_dense(weight, spec, second_moment=patch_second_moment(x, spec))
    errors = [(layer(x) - exact).square().mean() for layer in (plain, aware)]
    assert errors[1] < 0.5 * errors[0]


def test_a_convolution_from_scratch_keeps_the_variance() -> None:
    spec = Convolution(
        in_channels=32,
        out_channels=32,
        kernel=(3, 3),
        groups=2,
        structure=LowRank(rank=8),
    )
    layer = StructuredConv2d(spec)
    layer.reset_parameters(seeded())
    x = torch.randn(8, 32, 16, 16, generator=seeded(1))
    assert 0.8 < layer(x).square().mean() < 1.2
