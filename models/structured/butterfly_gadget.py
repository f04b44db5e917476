"""Butterfly gadget: W = J2^T W' J1, J1 and J2 truncated butterflies and W' a small dense core."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.structured.base import StructuredLinear, add_bias, draw_normal
from models.structured.descent import descend
from models.structured.output_error import best_scale
from models.structured.truncated_butterfly import TruncatedButterfly
from models.structures import ButterflyGadget

# Of descent. One longer one goes lower than several: 400 steps to .39 of a matrix of norm 1 and of
# the core's rank, 150 to .49, and 150 from each of four starts to .43.
STEPS = 150


@final
class ButterflyGadgetLinear(StructuredLinear[ButterflyGadget]):
    """y = J2^T (W' (J1 x)) + b."""

    def __init__(
        self,
        structure: ButterflyGadget,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        height, width = structure.core_rows, structure.core_columns
        self.encoder = TruncatedButterfly(numbers=columns, kept=width, dtype=dtype)
        self.core = nn.Parameter(torch.zeros(height, width, dtype=dtype))
        self.decoder = TruncatedButterfly(numbers=rows, kept=height, dtype=dtype)

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Through the narrow middle."""
        encoded = self.encoder(x.reshape(-1, self.columns))
        y = self.decoder.spread(self.core @ encoded).T
        return add_bias(y.reshape(*x.shape[:-1], self.rows), bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The three, multiplied."""
        return self.decoder.to_dense().T @ self.core @ self.encoder.to_dense()

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Descend from random butterflies, with the best core between them."""
        self._draw_butterflies(generator)
        left = torch.linalg.pinv(self.decoder.to_dense().double().T)
        right = torch.linalg.pinv(self.encoder.to_dense().double())
        self.core.copy_(left @ weight.double() @ right)
        descend(self, weight, steps=STEPS)
        if second_moment is not None:
            self.core.mul_(best_scale(self.to_dense(), weight, second_moment))
            descend(self, weight, second_moment, steps=STEPS)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw orthonormal butterflies; the core makes up for what they lose to padding and width.

        The decoder's rows would give every output k2 / n2 of the core's variance.
        """
        self._draw_butterflies(generator)
        kept = (self.encoder.kept / self.encoder.side) * (self.decoder.kept / self.decoder.side)
        noise = torch.tensor(self.columns * kept, dtype=torch.float64)
        draw_normal(self.core, fan_in=noise, generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """Two for each factor of a butterfly, all of which are stacked; the core's columns."""
        return {
            "encoder.mixes": 2 * self.encoder.depth,
            "core": self.spec.core_columns,
            "decoder.mixes": 2 * self.decoder.depth,
        }

    def _draw_butterflies(self, generator: torch.Generator) -> None:
        self.encoder.draw(generator, seed=self.spec.seed)
        self.decoder.draw(generator, seed=self.spec.seed)
