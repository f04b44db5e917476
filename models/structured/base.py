"""What every structured layer offers: y = W x + b without ever building W, and W for the tests."""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.spec import Structure


class StructuredLinear(nn.Module, ABC):
    """A linear layer whose matrix, `rows x columns`, has a structure.

    Every trainable number but the bias belongs to the structure, so that counted and stored agree.
    """

    def __init__(
        self, *, rows: int, columns: int, bias: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.rows = rows
        self.columns = columns
        self.bias = nn.Parameter(torch.zeros(rows, dtype=dtype)) if bias else None

    def forward(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """W x + b."""
        return self.product(x, self.bias)

    @property
    @abstractmethod
    def spec(self) -> Structure:
        """The structure as frozen data."""

    @abstractmethod
    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x, plus a bias fused into the last product where there is one."""

    @abstractmethod
    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The matrix this layer stands for, differentiable."""

    @abstractmethod
    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw the structure's numbers afresh, keeping the variance of unit-variance inputs.

        The maximal-update rule asks sqrt(min(a, c)) / a of a contraction from a to c numbers; with
        the gain sqrt(a / min(a, c)) that keeps the variance where it narrows, that is 1 / sqrt(a).
        """

    @final
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise from scratch: the structure by its rule, the bias with zeros."""
        with torch.no_grad():
            self.reset_matrix(generator)
            if self.bias is not None:
                self.bias.zero_()

    @final
    def set_bias(self, bias: Float[Tensor, " rows"] | None) -> None:
        """Copy a bias into the layer, which must have been built with one exactly if given."""
        if (bias is None) != (self.bias is None):
            raise ValueError("a bias can be set exactly where the layer was built with one")
        if bias is not None and self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(bias)

    @final
    def extra_repr(self) -> str:
        """Shape and structure, for `print`."""
        return f"rows={self.rows}, columns={self.columns}, bias={self.bias is not None}"


def draw_normal(tensor: Tensor, *, fan_in: int | Tensor, generator: torch.Generator) -> None:
    """Fill with normal numbers of variance 1 / fan_in, which broadcasts over the tensor."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    tensor.copy_(noise / torch.as_tensor(fan_in, dtype=tensor.dtype).sqrt())
