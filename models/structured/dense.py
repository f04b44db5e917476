"""Dense: W itself, every entry free."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, draw_normal
from models.structures import Dense


@final
class DenseLinear(StructuredLinear[Dense]):
    """y = W x + b."""

    def __init__(
        self,
        structure: Dense = Dense(),  # noqa: B008  frozen
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x, in one product."""
        return functional.linear(x, self.weight, bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The weight."""
        return self.weight

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Copy: every matrix is dense."""
        self.weight.copy_(weight)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw every entry."""
        draw_normal(self.weight, fan_in=self.columns, generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """Every output sums up all columns."""
        return {"weight": self.columns}
