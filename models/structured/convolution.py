"""Convolution: y[position] = W x[patch at the position] + b, W structured, one for each group."""

from collections.abc import Iterable
from itertools import product
from typing import final

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias
from models.structured.build import empty_layer, layer_class
from models.structured.checks import (
    check_bias,
    check_generator,
    check_groups,
    check_images,
    check_numbers,
)
from models.structured.dense import DenseLinear
from models.structured.low_rank import LowRankLinear
from models.structured.trainable import TrainableLayer
from models.structures import Structure
from models.structures.base import check_range
from models.structures.convolution import Convolution, ConvolutionSpec

# Patches are written out for so many numbers at once where their second moment is summed up.
PATCHED = 2**24


@final
class StructuredConv2d(TrainableLayer):
    """A convolution whose matrices have a structure.

    Dense and low rank are computed as convolutions, the latter with the kernel into `rank` channels
    and 1 x 1 out of them; a 1 x 1 kernel as a linear layer; all others on patches written out.
    """

    def __init__(
        self, spec: Convolution, *, bias: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        check_numbers(bias=bias, dtype=dtype)
        self.spec = spec
        self.matrices = nn.ModuleList(
            empty_layer(
                spec.structure, rows=spec.rows, columns=spec.columns, bias=False, dtype=dtype
            )
            for _ in range(spec.groups)
        )
        self.bias = nn.Parameter(torch.zeros(spec.out_channels, dtype=dtype)) if bias else None

    @classmethod
    def from_dense(
        cls,
        weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
        spec: Convolution,
        *,
        bias: Float[Tensor, " out_channels"] | None = None,
        second_moment: Float[Tensor, "groups columns columns"] | None = None,
        generator: torch.Generator | None = None,
    ) -> "StructuredConv2d":
        """The convolution nearest to a dense one: by weight or, given C of patches, by its output.

        `patch_second_moment` measures C, one for each group. ValueError where these do not belong
        together.
        """
        expected = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)
        if tuple(weight.shape) != expected:
            raise ValueError(f"the weight is {tuple(weight.shape)}, but the spec says {expected}")
        check_bias(bias, rows=spec.out_channels)
        check_groups(second_moment, groups=spec.groups)
        layer = cls(spec, bias=bias is not None, dtype=weight.dtype).to(weight.device)
        check_generator(generator, optional=True)
        generator = generator or torch.Generator().manual_seed(0)
        matrices = weight.detach().reshape(spec.groups, spec.rows, spec.columns)
        for index, matrix in enumerate(matrices):
            layer.matrices[index] = layer_class(spec.structure).from_dense(
                matrix,
                spec.structure,
                second_moment=None if second_moment is None else second_moment[index],
                generator=generator,
            )
        if bias is not None and layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(bias)
        return layer

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """The convolution, in the form that suits the structure."""
        spec, layers = self.spec, self.layers()
        check_images(x, spec)
        if spec.kernel == (1, 1):
            return self._pointwise(x)
        if isinstance(layers[0], DenseLinear):
            return add_channels(self._slide(x, self.to_dense()), self.bias)
        if isinstance(layers[0], LowRankLinear):
            return self._low_rank(x)
        return self._patched(x)

    def to_dense(
        self,
    ) -> Float[Tensor, "out_channels group_channels kernel_height kernel_width"]:
        """The weight of the same convolution in torch, differentiable."""
        stacked = torch.cat([layer.to_dense() for layer in self.layers()])
        return stacked.reshape(self.spec.out_channels, -1, *self.spec.kernel)

    def layers(self) -> list[StructuredLinear]:
        """The groups' matrices."""
        return [layer for layer in self.matrices if isinstance(layer, StructuredLinear)]

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise from scratch: each matrix by its structure's rule, the bias with zeros."""
        for layer in self.layers():
            layer.reset_parameters(generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def fan_ins(self) -> dict[str, float]:
        """The groups' own."""
        return {
            f"matrices.{index}.{name}": fan_in
            for index, layer in enumerate(self.layers())
            for name, fan_in in layer.fan_ins().items()
        }

    def dense_fan_in(self) -> int:
        """The columns of a group's matrix."""
        return self.spec.columns

    def core_count(self) -> int:
        """Those of one group."""
        return self.layers()[0].core_count()

    def _pointwise(self, x: Tensor) -> Tensor:
        down, across = self.spec.stride
        vertical, horizontal = self.spec.padding
        if vertical or horizontal:
            x = functional.pad(x, (horizontal, horizontal, vertical, vertical))
        pixels = x[:, :, ::down, ::across].movedim(1, -1)
        return self._by_group(pixels).movedim(-1, 1)

    def _low_rank(self, x: Tensor) -> Tensor:
        layers = [layer for layer in self.layers() if isinstance(layer, LowRankLinear)]
        first = torch.cat([layer.column_factor for layer in layers])
        last = torch.cat([layer.row_factor for layer in layers])
        narrow = self._slide(x, first.reshape(len(first), -1, *self.spec.kernel))
        wide = last[:, :, None, None]
        y: Tensor = functional.conv2d(narrow, wide, self.bias, groups=len(layers))
        return y

    def _patched(self, x: Tensor) -> Tensor:
        height, width = self.spec.output_size(height=x.shape[2], width=x.shape[3])
        y = self._by_group(patches(x, self.spec)).transpose(1, 2)
        return y.reshape(x.shape[0], self.spec.out_channels, height, width)

    def _by_group(self, x: Tensor) -> Tensor:
        if self.spec.groups == 1:
            return self.layers()[0].product(x, self.bias)
        parts = x.chunk(self.spec.groups, -1)
        products = [layer.product(part) for layer, part in zip(self.layers(), parts, strict=True)]
        return add_bias(torch.cat(products, -1), self.bias)

    def _slide(self, x: Tensor, weight: Tensor) -> Tensor:
        spec = self.spec
        y: Tensor = functional.conv2d(
            x,
            weight,
            stride=spec.stride,
            padding=spec.padding,
            dilation=spec.dilation,
            groups=spec.groups,
        )
        return y


def add_channels(
    y: Float[Tensor, "batch channels height width"], bias: Float[Tensor, " channels"] | None
) -> Float[Tensor, "batch channels height width"]:
    """Add b to every position."""
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def tap_views(
    x: Float[Tensor, "batch in_channels height width"],
    spec: ConvolutionSpec,
    taps: Iterable[tuple[int, int]],
) -> list[Float[Tensor, "batch in_channels new_height new_width"]]:
    """What each of these taps of the kernel sees at each position."""
    tall, wide = spec.output_size(height=x.shape[2], width=x.shape[3])
    (vertical, horizontal), (down, across) = spec.padding, spec.stride
    if vertical or horizontal:
        x = functional.pad(x, (horizontal, horizontal, vertical, vertical))
    corners = [(row * spec.dilation[0], column * spec.dilation[1]) for row, column in taps]
    bottom, end = (tall - 1) * down + 1, (wide - 1) * across + 1
    return [x[:, :, top : top + bottom : down, left : left + end : across] for top, left in corners]


def patches(
    x: Float[Tensor, "batch in_channels height width"], spec: ConvolutionSpec
) -> Float[Tensor, "batch positions numbers"]:
    """What the whole kernel sees at each position; the groups' columns lie one after the other.

    The numbers of a column lie one after the other, as batched products and sums by columns like
    them; stacked slices take no longer than torch's `unfold`.
    """
    views = tap_views(x, spec, product(range(spec.kernel[0]), range(spec.kernel[1])))
    stacked = torch.stack([view.transpose(0, 1) for view in views], 1)
    return rearrange(stacked, "channel tap image row column -> image (row column) (channel tap)")


@torch.no_grad()
def patch_second_moment(
    x: Float[Tensor, "batch in_channels height width"], spec: ConvolutionSpec
) -> Float[Tensor, "groups columns columns"]:
    """C = E[p p^T] of each group's patches p over all images and positions, in float64.

    ValueError where there are no images, whose mean would be no number.
    """
    check_images(x, spec)
    check_range("images", len(x), low=1, where="their mean")
    height, width = spec.output_size(height=x.shape[2], width=x.shape[3])
    numbers = spec.groups * spec.columns * height * width
    total = x.new_zeros(spec.groups, spec.columns, spec.columns, dtype=torch.float64)
    for part in x.split(max(1, PATCHED // numbers)):
        found = rearrange(
            patches(part, spec).double(),
            "image position (group column) -> group (image position) column",
            group=spec.groups,
        )
        total += found.transpose(1, 2) @ found
    return total / (len(x) * height * width)


def convolution_of(layer: nn.Conv2d, structure: Structure) -> Convolution:
    """The spec of a torch convolution with this structure; ValueError for borders not of zeros."""
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(f"layer is a {type(layer).__name__}, but a convolution admits nn.Conv2d")  # noqa: TRY004
    if layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode is {layer.padding_mode}, but a convolution admits zeros")
    return Convolution(
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        kernel=_pair(layer.kernel_size),
        stride=_pair(layer.stride),
        padding=_padding(layer),
        dilation=_pair(layer.dilation),
        groups=layer.groups,
        structure=structure,
    )


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if layer.padding == "valid":
        return 0, 0
    if layer.padding == "same":
        spread = [
            spacing * (taps - 1)
            for spacing, taps in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        if any(total % 2 for total in spread):
            raise ValueError("padding is same, but a kernel of even size admits numbers only")
        return spread[0] // 2, spread[1] // 2
    assert not isinstance(layer.padding, str)
    return _pair(layer.padding)


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    return sides[0], sides[1]
