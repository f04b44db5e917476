"""Dense: W itself, every entry free."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.spec import Dense
from models.structured.base import StructuredLinear, draw_normal


@final
class DenseLinear(StructuredLinear):
    """y = W x + b."""

    def __init__(
        self, *, rows: int, columns: int, bias: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=dtype))

    @classmethod
    def from_dense(
        cls, weight: Float[Tensor, "rows columns"], *, bias: Float[Tensor, " rows"] | None = None
    ) -> "DenseLinear":
        """The weight, copied: every matrix is dense."""
        rows, columns = weight.shape
        layer = cls(rows=rows, columns=columns, bias=bias is not None, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
        layer.set_bias(bias)
        return layer

    @property
    def spec(self) -> Dense:
        """The structure as frozen data."""
        return Dense()

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x, in one product."""
        return functional.linear(x, self.weight, bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The weight."""
        return self.weight

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw every entry."""
        draw_normal(self.weight, fan_in=self.columns, generator=generator)
