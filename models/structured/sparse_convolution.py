"""Sparse convolution: groups of channels and some of the kernel's taps (arXiv 2210.12818).

y[c, p] = sum over its group's input channels a and the kept taps t of W[c, a, t] x[a, p + t].
"""

from dataclasses import dataclass
from math import gcd
from typing import final

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import draw_normal
from models.structured.checks import (
    check_bias,
    check_generator,
    check_groups,
    check_images,
    check_numbers,
    check_target,
)
from models.structured.convolution import tap_views
from models.structured.error_curve import ErrorCurve
from models.structured.output_error import regularised
from models.structured.trainable import TrainableLayer
from models.structures.convolution import ConvolutionSpec, SparseConvolution, check_image


@final
class SparseConv2d(TrainableLayer):
    """A grouped 1 x 1 convolution over the kept taps' views, or a grouped one if all are kept."""

    def __init__(
        self, spec: SparseConvolution, *, bias: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        check_numbers(bias=bias, dtype=dtype)
        self.spec = spec
        inputs = spec.in_channels // spec.groups
        self.weight = nn.Parameter(
            torch.zeros(spec.out_channels, inputs, len(spec.taps), dtype=dtype)
        )
        self.bias = nn.Parameter(torch.zeros(spec.out_channels, dtype=dtype)) if bias else None

    @classmethod
    def from_dense(
        cls,
        weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
        spec: SparseConvolution,
        *,
        bias: Float[Tensor, " out_channels"] | None = None,
        second_moment: Float[Tensor, "groups columns columns"] | None = None,
    ) -> "SparseConv2d":
        """The nearest to a convolution of as many groups or fewer: cropped, or by its output.

        C is that of the given convolution's patches, by `patch_second_moment`. Then each output
        channel is the least-squares solution W C[:, J] C[J, J]^-1 on what it still sees.
        """
        check_bias(bias, rows=spec.out_channels)
        parts = _parts(weight, spec, spec.groups, second_moment)
        layer = cls(spec, bias=bias is not None, dtype=weight.dtype).to(weight.device)
        high, wide = spec.kernel
        taps = torch.tensor([row * wide + column for row, column in spec.taps])
        inputs = spec.in_channels // spec.groups
        kept = _places(taps.to(weight.device), area=high * wide, channels=inputs)
        found = parts.matrix[:, :, kept]
        if parts.moment is not None and parts.wanted is not None:
            gram = parts.moment[:, kept[:, None], kept]
            solved = torch.linalg.solve(gram, parts.wanted[:, :, kept].transpose(1, 2))
            found = solved.transpose(1, 2)
        found = rearrange(
            found, "group row (tap channel) -> (group row) channel tap", channel=inputs
        )
        with torch.no_grad():
            layer.weight.copy_(found)
            if bias is not None and layer.bias is not None:
                layer.bias.copy_(bias)
        return layer

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """The convolution with the kept taps."""
        spec = self.spec
        check_images(x, spec)
        if len(spec.taps) == spec.kernel[0] * spec.kernel[1]:
            return functional.conv2d(
                x,
                self.to_dense(),
                self.bias,
                stride=spec.stride,
                padding=spec.padding,
                dilation=spec.dilation,
                groups=spec.groups,
            )
        seen = torch.stack(tap_views(x, spec, spec.taps), 2).flatten(1, 2)
        weight = self.weight.flatten(1)[:, :, None, None]
        y: Tensor = functional.conv2d(seen, weight, self.bias, groups=spec.groups)
        return y

    def to_dense(
        self,
    ) -> Float[Tensor, "out_channels group_channels kernel_height kernel_width"]:
        """The weight of the same grouped convolution in torch, differentiable."""
        high, wide = self.spec.kernel
        dense = self.weight.new_zeros(*self.weight.shape[:2], high * wide)
        at = torch.tensor([row * wide + column for row, column in self.spec.taps])
        dense = dense.index_copy(2, at.to(dense.device), self.weight)
        return dense.reshape(*self.weight.shape[:2], high, wide)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise from scratch, keeping the variance; the bias with zeros."""
        check_generator(generator)
        with torch.no_grad():
            fan_in = self.weight.shape[1] * self.weight.shape[2]
            draw_normal(self.weight, fan_in=fan_in, generator=generator)
            if self.bias is not None:
                self.bias.zero_()

    def fan_ins(self) -> dict[str, float]:
        """The group's input channels times the taps."""
        return {"weight": self.weight.shape[1] * self.weight.shape[2]}

    def dense_fan_in(self) -> int:
        """All input channels times all taps: the groups are part of what is sparse."""
        return self.spec.in_channels * self.spec.kernel[0] * self.spec.kernel[1]

    def core_count(self) -> int:
        """The one."""
        return 1


def error_curve(
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    spec: ConvolutionSpec,
    second_moment: Float[Tensor, "groups columns columns"] | None = None,
    *,
    image: tuple[int, int] | None = None,
) -> ErrorCurve[SparseConvolution]:
    """The best groups and taps at every size of a convolution, exact.

    MACs are those of an image of this height and width, as `mac_count` gives them; without one, of
    a single position of the output.
    For each number of groups taps are added in the order of their energy (W^2 C's diagonal), so
    that sizes of one number of groups hold each other. A size that costs more than another and
    leaves no less is left out.
    """
    sizes: list[tuple[int, float, int, Int[Tensor, " taps"]]] = []
    channels = gcd(spec.in_channels, spec.out_channels)
    for groups in range(spec.groups, channels + 1, spec.groups):
        if channels % groups == 0:
            parts = _parts(weight, spec, groups, second_moment)
            order, errors = _errors(parts, spec.kernel[0] * spec.kernel[1])
            a_tap = spec.out_channels * (spec.in_channels // groups)
            sizes += [
                (count * a_tap, error, groups, order[:count])
                for count, error in enumerate(errors.tolist(), start=1)
            ]
    best, lowest = [], float("inf")
    for size in sorted(sizes, key=lambda size: size[:3]):
        if size[1] < lowest:
            best.append(size)
            lowest = size[1]
    wide = spec.kernel[1]

    def structure(index: int) -> SparseConvolution:
        _, _, groups, taps = best[index]
        shape = spec.model_dump(include=set(ConvolutionSpec.model_fields)) | {"groups": groups}
        kept = sorted((tap // wide, tap % wide) for tap in taps.tolist())
        return SparseConvolution.model_validate(shape | {"taps": kept})

    numbers = torch.tensor([size[0] for size in best])
    errors = torch.tensor([size[1] for size in best], dtype=torch.float64)
    height, width = 1, 1
    if image is not None:
        if not isinstance(image, tuple | list) or len(image) != 2:
            raise ValueError(
                f"image is {image!r}, but a curve admits a height and a width: (28, 28)"
            )
        check_image(height=image[0], width=image[1])
        height, width = spec.output_size(height=image[0], width=image[1])
    macs = height * width * numbers
    return ErrorCurve(macs=macs, parameters=numbers, errors=errors, member=structure)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What stays of a convolution where it is split into more groups; columns lie by channels."""

    energy: Float[Tensor, ""]  # of the whole, before it was split
    matrix: Float[Tensor, "groups rows columns"]
    wanted: Float[Tensor, "groups rows columns"] | None  # W C
    moment: Float[Tensor, "groups columns columns"] | None


def _parts(
    weight: Float[Tensor, "out_channels group_channels kernel_height kernel_width"],
    spec: ConvolutionSpec,
    groups: int,
    second_moment: Float[Tensor, "old_groups columns columns"] | None,
) -> _Parts:
    """The blocks on the diagonal of the matrices W, of W C and of C, in float64."""
    old = spec.in_channels // weight.shape[1]
    if (
        weight.shape[0] != spec.out_channels
        or tuple(weight.shape[2:]) != spec.kernel
        or weight.shape[1] * old != spec.in_channels
        or groups % old
    ):
        raise ValueError(
            f"the weight is {tuple(weight.shape)}, but {groups} groups of {spec.in_channels} to "
            f"{spec.out_channels} channels with a kernel of {spec.kernel} cannot be made of it"
        )
    check_groups(second_moment, groups=old)
    for group, matrix in enumerate(weight.reshape(old, spec.out_channels // old, -1)):
        check_target(matrix, None if second_moment is None else second_moment[group])
    matrix = weight.detach().double().reshape(old, spec.out_channels // old, -1)
    split = groups // old
    if second_moment is None:
        return _Parts(matrix.square().sum(), _blocks(matrix, split), None, None)
    moment = torch.stack([regularised(one) for one in second_moment])
    wanted = matrix @ moment
    return _Parts(
        (wanted * matrix).sum(),
        _blocks(matrix, split),
        _blocks(wanted, split),
        _blocks(moment, split),
    )


def _blocks(
    matrices: Float[Tensor, "old_groups rows columns"], split: int
) -> Float[Tensor, "groups new_rows new_columns"]:
    """Each matrix's `split` blocks on the diagonal."""
    grid = rearrange(
        matrices,
        "old (down row) (right column) -> old row column down right",
        down=split,
        right=split,
    )
    return rearrange(
        grid.diagonal(dim1=3, dim2=4), "old row column block -> (old block) row column"
    )


def _places(taps: Int[Tensor, " taps"], *, area: int, channels: int) -> Int[Tensor, " places"]:
    """The columns of these taps of all channels; those of one tap lie together."""
    return (taps[:, None] + area * torch.arange(channels, device=taps.device)).flatten()


def _errors(parts: _Parts, area: int) -> tuple[Int[Tensor, " taps"], Float[Tensor, " taps"]]:
    """The taps by their energy, and the relative error that the first 1, 2, ... of them leave.

    With C[J, J] = L L^T of the columns J in that order, each explains its square of L^-1 (W C)[J].
    """
    energy = parts.matrix.square()
    if parts.moment is not None:
        energy = energy * parts.moment.diagonal(dim1=1, dim2=2)[:, None]
    by_tap = rearrange(energy, "group row (channel tap) -> tap (group row channel)", tap=area)
    order = by_tap.sum(1).argsort(descending=True, stable=True)
    explained = by_tap.sum(1)[order]
    if parts.moment is not None and parts.wanted is not None:
        at = _places(order, area=area, channels=parts.matrix.shape[2] // area)
        root = torch.linalg.cholesky(parts.moment[:, at[:, None], at])
        right = parts.wanted[:, :, at].transpose(1, 2)
        solved = torch.linalg.solve_triangular(root, right, upper=False)
        explained = solved.square().sum((0, 2)).unflatten(0, (area, -1)).sum(1)
    left = (parts.energy - explained.cumsum(0)).clamp(min=0)
    return order, left / parts.energy if parts.energy > 0 else left
