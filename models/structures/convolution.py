"""Convolution: for every group of channels one structured matrix, applied to patches of the image.

The matrix of a group has its output channels as rows; its columns are its input channels times the
kernel's taps, the taps of a channel together. A 1 x 1 convolution is a linear layer.
"""

from abc import ABC, abstractmethod
from typing import final

from pydantic import NonNegativeInt, PositiveInt, model_validator

from models.frozen import Spec
from models.structures import Dense, Structure
from models.structures.base import check_divides, check_range, check_rising

# Vertical, horizontal.
Sides = tuple[PositiveInt, PositiveInt]
Borders = tuple[NonNegativeInt, NonNegativeInt]


class ConvolutionSpec(Spec, ABC):
    """What every convolution is: channels, and how its kernel moves over the image."""

    in_channels: PositiveInt
    out_channels: PositiveInt
    kernel: Sides = (1, 1)
    stride: Sides = (1, 1)
    padding: Borders = (0, 0)
    dilation: Sides = (1, 1)
    groups: PositiveInt = 1

    @model_validator(mode="after")
    def _groups_divide_channels(self) -> "ConvolutionSpec":
        channels = {"in_channels": self.in_channels, "out_channels": self.out_channels}
        check_divides("groups", self.groups, **channels)
        return self

    @property
    def rows(self) -> int:
        """Of a group's matrix."""
        return self.out_channels // self.groups

    @property
    def columns(self) -> int:
        """Of a group's matrix."""
        return self.in_channels // self.groups * self.kernel[0] * self.kernel[1]

    def output_size(self, *, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output; ValueError for an image smaller than the kernel."""
        found = [
            (size + 2 * border - spacing * (taps - 1) - 1) // step + 1
            for size, taps, step, border, spacing in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]
        if any(size < 1 for size in (height, width, *found)):
            raise ValueError(
                f"the image is {height} x {width}, but a kernel of {self.kernel[0]} x "
                f"{self.kernel[1]} with dilation {self.dilation} and padding {self.padding} "
                f"admits larger ones only"
            )
        return found[0], found[1]

    @final
    def mac_count(self, *, height: int, width: int) -> int:
        """Multiply-accumulates for one image of this height and width."""
        check_image(height=height, width=width)
        tall, wide = self.output_size(height=height, width=width)
        return tall * wide * self.macs_a_position()

    @abstractmethod
    def macs_a_position(self) -> int:
        """Multiply-accumulates for one position of the output, all its channels together."""

    @abstractmethod
    def parameter_count(self) -> int:
        """Trainable numbers stored, without the bias."""


def check_image(*, height: int, width: int) -> None:
    """Raise ValueError where no image is as high or wide."""
    check_range("height", height, low=1, where="an image")
    check_range("width", width, low=1, where="an image")


@final
class Convolution(ConvolutionSpec):
    """A convolution whose groups' matrices have a structure, each its own numbers."""

    structure: Structure = Dense()

    @model_validator(mode="after")
    def _structure_fits(self) -> "Convolution":
        self.structure.check_fits(rows=self.rows, columns=self.columns)
        return self

    def macs_a_position(self) -> int:
        """Of all groups."""
        return self.groups * self.structure.mac_count(rows=self.rows, columns=self.columns)

    def parameter_count(self) -> int:
        """Of all groups."""
        return self.groups * self.structure.parameter_count(rows=self.rows, columns=self.columns)


@final
class SparseConvolution(ConvolutionSpec):
    """A convolution with some of its kernel's taps only (Verma et al., arXiv 2210.12818).

    `taps` are the kept (row, column) of the kernel, sorted. All taps give a grouped convolution, as
    many groups as channels a depthwise one, the middle tap alone a pointwise one.
    """

    taps: tuple[Borders, ...]

    @model_validator(mode="after")
    def _taps_lie_in_the_kernel(self) -> "SparseConvolution":
        if not self.taps:
            raise ValueError("taps is (), but a convolution admits at least one")
        check_rising("taps", self.taps)
        high, wide = self.kernel
        for row, column in self.taps:
            if row >= high or column >= wide:
                raise ValueError(
                    f"a tap of taps is {row, column}, but a kernel of {high} x {wide} admits "
                    f"{0, 0} to {high - 1, wide - 1}"
                )
        return self

    def macs_a_position(self) -> int:
        """One for each number."""
        return self.parameter_count()

    def parameter_count(self) -> int:
        """Every output channel sees the kept taps of its group's input channels."""
        return self.out_channels * (self.in_channels // self.groups) * len(self.taps)
