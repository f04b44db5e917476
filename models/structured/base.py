"""What every structured layer offers: y = W x + b without ever building W, and W for the tests."""

from abc import ABC, abstractmethod
from operator import attrgetter
from typing import Any, Generic, Self, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import TypeVar

from models.structured.checks import (
    check_bias,
    check_generator,
    check_numbers,
    check_target,
    check_width,
)
from models.structured.trainable import TrainableLayer
from models.structures.base import StructureSpec

S = TypeVar("S", bound=StructureSpec, default=Any)


class StructuredLinear(TrainableLayer, ABC, Generic[S]):
    """A linear layer whose matrix, `rows x columns`, has a structure.

    Every trainable number but the bias belongs to the structure, so that counted and stored agree.
    """

    def __init__(
        self,
        structure: S,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_numbers(bias=bias, dtype=dtype)
        structure.check_fits(rows=rows, columns=columns)
        self.spec = structure
        self.rows = rows
        self.columns = columns
        self.bias = nn.Parameter(torch.zeros(rows, dtype=dtype)) if bias else None

    @final
    @classmethod
    def from_dense(
        cls,
        weight: Float[Tensor, "rows columns"],
        structure: S,
        *,
        bias: Float[Tensor, " rows"] | None = None,
        second_moment: Float[Tensor, "columns columns"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """The layer nearest to a dense one: by weight or, given C = E[x x^T], by its output.

        The generator draws the starts of a fit that has any; without one, always the same.
        ValueError where these cannot be a matrix, its bias and the second moment of its inputs.
        """
        check_target(weight, second_moment)
        check_generator(generator, optional=True)
        rows, columns = weight.shape
        check_bias(bias, rows=rows)
        layer = cls(
            structure, rows=rows, columns=columns, bias=bias is not None, dtype=weight.dtype
        )
        moment = None if second_moment is None else _without_gradient(second_moment)
        with torch.no_grad():
            # On the CPU, wherever the weight is: generators draw there, LAPACK's float64 is there.
            layer.fit_matrix(
                _without_gradient(weight), moment, generator or torch.Generator().manual_seed(0)
            )
        layer.set_bias(bias)
        return layer.to(weight.device)

    def forward(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """W x + b; ValueError for inputs of another width, which some products would take."""
        check_width(x, columns=self.columns)
        return self.product(x, self.bias)

    @abstractmethod
    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x, plus a bias fused into the last product where there is one."""

    @abstractmethod
    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The matrix this layer stands for, differentiable."""

    @abstractmethod
    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Set the structure's numbers to the projection of a matrix, called without gradients.

        Never worse than zero; given C, never worse by the output than the projection without it.
        """

    @abstractmethod
    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw the structure's numbers afresh, keeping the variance of unit-variance inputs.

        The maximal-update rule asks sqrt(min(a, c)) / a of a contraction from a to c numbers; with
        the gain sqrt(a / min(a, c)) that keeps the variance where it narrows, that is 1 / sqrt(a).
        """

    @final
    def dense_fan_in(self) -> int:
        """The columns."""
        return self.columns

    @final
    def core_count(self) -> int:
        """All that have numbers."""
        return sum(attrgetter(name)(self).numel() > 0 for name in self.fan_ins())

    @final
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise from scratch: the structure by its rule, the bias with zeros."""
        check_generator(generator)
        with torch.no_grad():
            self.reset_matrix(generator)
            if self.bias is not None:
                self.bias.zero_()

    @final
    def set_bias(self, bias: Float[Tensor, " rows"] | None) -> None:
        """Copy a bias into the layer, which must have been built with one exactly if given."""
        if (bias is None) != (self.bias is None):
            raise ValueError("a bias can be set exactly where the layer was built with one")
        check_bias(bias, rows=self.rows)
        if bias is not None and self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(bias)

    @final
    def extra_repr(self) -> str:
        """Shape and structure, for `print`."""
        shape = f"rows={self.rows}, columns={self.columns}, bias={self.bias is not None}"
        return f"structure={self.spec.in_words()!r}, {shape}"


def _without_gradient(tensor: Tensor) -> Tensor:
    """On the CPU; itself where it can be, by which is known what was found of it before."""
    if tensor.requires_grad or tensor.device.type != "cpu":
        return tensor.detach().cpu()
    return tensor


def real_columns(columns: int, *, groups: int, width: int) -> Int[Tensor, " groups"]:
    """How many columns each of equal groups has that are no padding; 1 where there are none."""
    return (columns - torch.arange(groups) * width).clamp(min=1, max=width)


def draw_normal(tensor: Tensor, *, fan_in: int | Tensor, generator: torch.Generator) -> None:
    """Fill with normal numbers of variance 1 / fan_in, which broadcasts over the tensor."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    tensor.copy_(noise / torch.as_tensor(fan_in, dtype=tensor.dtype, device="cpu").sqrt())


def add_bias(
    y: Float[Tensor, "*batch rows"], bias: Float[Tensor, " rows"] | None
) -> Float[Tensor, "*batch rows"]:
    """Add b in the dtype of y, which under autocast is not the bias's."""
    return y if bias is None else y + bias.to(y.dtype)
