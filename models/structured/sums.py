"""A sum of structures: W = W_1 + ... + W_k, each part a layer without a bias."""

import copy
import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear
from models.structured.low_rank import LowRankLinear
from models.structured.plain import plain_class
from models.structured.sums_fit import fit_sum
from models.structures import Sum

# By how much numbers grow to see how the matrix does: little, as there are degrees of thousands.
GROWTH = 1.01


@final
class SumLinear(StructuredLinear[Sum]):
    """y = W_1 x + ... + W_k x + b."""

    def __init__(
        self,
        structure: Sum,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.parts = nn.ModuleList(
            plain_class(part)(part, rows=rows, columns=columns, bias=False, dtype=dtype)
            for part in structure.parts
        )

    @staticmethod
    def of(
        parts: Sequence[StructuredLinear], *, bias: Float[Tensor, " rows"] | None
    ) -> "SumLinear":
        """The sum of copies of layers without biases, all of one shape."""
        first = parts[0]
        layer = SumLinear(
            Sum(parts=tuple(part.spec for part in parts)),
            rows=first.rows,
            columns=first.columns,
            bias=bias is not None,
            dtype=next(first.parameters()).dtype,
        )
        for own, part in zip(layer.layers(), parts, strict=True):
            own.load_state_dict(part.state_dict())
        layer.set_bias(bias)
        return layer

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Sum the parts' products, low rank last: its product adds to what is there."""
        first, *others = sorted(self.layers(), key=lambda part: isinstance(part, LowRankLinear))
        y = first.product(x, bias)
        for part in others:
            y = (
                plus_low_rank(y, part, x)
                if isinstance(part, LowRankLinear)
                else y + part.product(x)
            )
        return y

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The parts' matrices, summed."""
        first, *others = (part.to_dense() for part in self.layers())
        return sum(others, start=first)

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Project in turn each part on what the others leave, then descend together."""
        fit_sum(self, weight, second_moment, generator)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw every part, with an equal share of the variance."""
        for part in self.layers():
            part.reset_matrix(generator)
            scale_matrix(part, 1 / math.sqrt(len(self.parts)))

    def fan_ins(self) -> dict[str, float]:
        """The parts' own."""
        return {
            f"parts.{index}.{name}": fan_in
            for index, part in enumerate(self.layers())
            for name, fan_in in part.fan_ins().items()
        }

    def layers(self) -> list[StructuredLinear]:
        """The parts, as what they are."""
        return [part for part in self.parts if isinstance(part, StructuredLinear)]


def plus_low_rank(
    y: Float[Tensor, "*batch rows"], part: LowRankLinear, x: Float[Tensor, "*batch columns"]
) -> Float[Tensor, "*batch rows"]:
    """What is there, y, plus U (V^T x): the sum is done by the second product."""
    narrow = functional.linear(x, part.column_factor).reshape(-1, part.spec.rank)
    flat = y.reshape(-1, y.shape[-1])
    return torch.addmm(flat, narrow, part.row_factor.T).reshape(y.shape)


def scale_matrix(part: StructuredLinear, factor: float) -> None:
    """Multiply a layer's matrix by a number: equally in all its tensors, or else in one of them.

    Most matrices are homogeneous in their tensors together, of a degree that a little growth tells;
    of the rest, such as a spectrum between orthonormal frames, one tensor alone is a factor. What
    has no size of its own, such as a rotation, stays as it is.
    """
    trial = copy.deepcopy(part).double()
    tensors, before = list(trial.parameters()), trial.to_dense().clone()
    energy = before.square().sum().clamp(min=torch.finfo(before.dtype).tiny)
    kept = [tensor.clone() for tensor in tensors]
    indices = range(len(tensors))
    for chosen in (indices, *([index] for index in indices)):
        for index in chosen:
            tensors[index].mul_(GROWTH)
        ratio = float((trial.to_dense() * before).sum() / energy)
        degree = max(1, round(math.log(max(ratio, 1)) / math.log(GROWTH)))
        size = factor ** (1 / degree)
        for index in chosen:
            tensors[index].copy_(kept[index] * size)
        if torch.allclose(trial.to_dense(), factor * before, rtol=1e-6, atol=1e-9):
            for own, found in zip(part.parameters(), tensors, strict=True):
                own.copy_(found)
            return
        for index in chosen:
            tensors[index].copy_(kept[index])
