"""Grids of sums of Kronecker products as layers: two batched products, whatever the seven sizes.

Block (p, g) of the grid is sum_r A_pgr (x) B_pgr. The core that is contracted first, whichever of
A and B takes less, is called `first`; the other `second`:
    first   [g, p, r, o, c]: reads c, writes o
    second  [p, g, d, r, q]: reads d, writes q, and sums up g and r
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import TypeVar

from models.structured.base import StructuredLinear, add_bias, draw_normal
from models.structured.batched import padded
from models.structured.output_error import best_scale, regularised
from models.structured.two_cores_fit import CoreIndices, decompose, refine
from models.structures.two_cores import TwoCores

T = TypeVar("T", bound=TwoCores)


class TwoCoresLinear(StructuredLinear[T]):
    """y = B (A x), or A (B x), over the indices of both."""

    def __init__(
        self,
        structure: T,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        sizes = structure.sizes(rows=rows, columns=columns)
        self.indices = i = CoreIndices.of(sizes)
        self.first = nn.Parameter(torch.zeros(i.g, i.p, sizes.rho, i.o, i.c, dtype=dtype))
        self.second = nn.Parameter(torch.zeros(i.p, i.g, i.d, sizes.rho, i.q, dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """One batched product over g for the first core, and one over p for the second."""
        gamma, phi, rho, out, into = self.first.shape
        _, _, other, _, last = self.second.shape
        flat = padded(x, gamma * into * other)
        if self.indices.left_first:
            indexed = flat.reshape(-1, gamma, into, other).permute(1, 0, 3, 2)
        else:
            indexed = flat.reshape(-1, gamma, other, into).transpose(0, 1)
        weight = self.first.reshape(gamma, phi * rho * out, into).transpose(1, 2)
        middle = torch.bmm(indexed.reshape(gamma, -1, into), weight)
        middle = middle.reshape(gamma, -1, other, phi, rho, out).permute(3, 1, 5, 0, 2, 4)
        weight = self.second.reshape(phi, gamma * other * rho, last)
        found = torch.bmm(middle.reshape(phi, -1, gamma * other * rho), weight)
        found = found.reshape(phi, -1, out, last).transpose(0, 1)
        if not self.indices.left_first:
            found = found.transpose(2, 3)
        y = found.reshape(*x.shape[:-1], phi * out * last)[..., : self.rows]
        return add_bias(y, bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """All blocks of the grid, cropped."""
        blocks = torch.einsum("gproc,pgdrq->poqgcd", self.first, self.second)
        return self.indices.unfold(blocks)[: self.rows, : self.columns]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """One decomposition for each block is exact; with padding or C, least squares go on."""
        i, matrix = self.indices, weight.double()
        target = i.fold(matrix)
        first, second = decompose(target, rank=self.first.shape[2])
        # With C the plain projection is the start, which where something is padded is a fit itself.
        moments = [] if second_moment is None else [regularised(second_moment)]
        if target.numel() > weight.numel():
            moments.insert(0, torch.eye(self.columns).to(matrix))
        inside = i.fold(torch.ones_like(matrix))
        for moment in moments:
            found = i.unfold(torch.einsum("gproc,pgdrq->poqgcd", first, second))
            scale = best_scale(found[: self.rows, : self.columns], matrix, moment)
            first, second = refine(
                first, scale * second, target=target, inside=inside, moment=i.fold_moment(moment)
            )
        self.first.copy_(first)
        self.second.copy_(second)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw both cores, then scale the second: few numbers that are shared vary much."""
        fan_ins = self._fan_ins()
        draw_normal(self.first, fan_in=fan_ins["first"], generator=generator)
        draw_normal(self.second, fan_in=fan_ins["second"], generator=generator)
        self.second.mul_((self.rows / self.to_dense().square().sum()).sqrt())

    def fan_ins(self) -> dict[str, float]:
        """What each contraction sums up."""
        return {**self._fan_ins()}

    def _fan_ins(self) -> dict[str, int]:
        _, gamma, other, rho, _ = self.second.shape
        return {"first": self.indices.c, "second": gamma * other * rho}
