"""Truncated butterfly: J, k x n, of which only those mixes exist that its k outputs depend on.

Notation: n = 2^L numbers, m = 2^K the power of two next above the k kept. The factors' strides
increase. After the K first, every run of m numbers holds k that are kept: its first k. The other
factors add up the n / m runs by pairs, each entry with numbers of its own. Which rows of a full
butterfly these are is then only a matter of how it starts.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.butterfly_factors import Run, merged
from models.structures.base import check_range
from models.structures.butterfly import levels
from models.structures.butterfly_gadget import mix_count

# Up to so many outputs J is multiplied as one dense matrix, on purpose. For 1576 tokens on one core
# and n = 4096 that takes 13 ms for 64 outputs, 22 for 128 and 38 for 256; two factors 36 to 38.
DENSE_OUTPUTS = 128


@final
class TruncatedButterfly(nn.Module):
    """J x, and J^T z: an encoder of `numbers` to `kept`, or a decoder.

    The factors are merged into two, which multiply n (s + k / s) numbers with s near sqrt(k), or
    into one where few are kept: more than the mixes that are counted, in less time.
    """

    def __init__(self, *, numbers: int, kept: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_range("numbers", numbers, low=1, where="a butterfly")
        check_range("kept", kept, low=1, high=numbers, where=f"a butterfly of {numbers} numbers")
        self.numbers, self.kept = numbers, kept
        self.depth = levels(numbers)
        self.full = (kept - 1).bit_length()
        self.shared = 0 if kept <= DENSE_OUTPUTS else self.full // 2
        self.mixes = nn.Parameter(torch.zeros(mix_count(numbers, kept), dtype=dtype))

    def forward(self, x: Float[Tensor, "batch numbers"]) -> Float[Tensor, "kept batch"]:
        """J of every row, which come out as columns."""
        first, second = self._merged()
        padded = functional.pad(x, (0, self.side - self.numbers))
        batch, width = x.shape[0], second.shape[0]
        state = padded.reshape(batch, self.side // width, width).permute(1, 2, 0)
        if first is not None:
            state = torch.bmm(first, state)
        found = torch.bmm(second, state.transpose(0, 1))
        return found.transpose(0, 1).reshape(width * second.shape[1], batch)[: self.kept]

    def spread(self, z: Float[Tensor, "kept batch"]) -> Float[Tensor, "numbers batch"]:
        """J^T of every column."""
        first, second = self._merged()
        width, outputs, _ = second.shape
        padded = functional.pad(z, (0, 0, 0, width * outputs - self.kept))
        state = padded.reshape(outputs, width, z.shape[1]).transpose(0, 1)
        found = torch.bmm(second.mT, state).transpose(0, 1)
        if first is not None:
            found = torch.bmm(first.mT, found)
        return found.reshape(self.side, z.shape[1])[: self.numbers]

    def to_dense(self) -> Float[Tensor, "kept numbers"]:
        """All factors merged into one."""
        return self._joined(0)[0, : self.kept, : self.numbers]

    def draw(self, generator: torch.Generator, *, seed: int) -> None:
        """Start from orthonormal rows of a Hadamard matrix, which `seed` picks, with random signs.

        The fast Johnson-Lindenstrauss transform (Ailon & Chazelle, SIAM J. Computing 2009).
        """
        rows = torch.Generator().manual_seed(seed)
        root = math.sqrt(0.5)
        for index, mix in enumerate(self._factors(self.mixes)):
            if index < self.full:
                upper = torch.arange(mix.shape[-2]) >= 1 << index
                # Mixing by (+, -) where the position's bit is set; the seed turns over all bits.
                minus = upper ^ bool(torch.randint(2, (1,), generator=rows))
            else:
                minus = torch.randint(2, (self.kept,), generator=rows).bool()
            mix.fill_(root)
            mix[..., 1] = torch.where(minus, -root, root)
            if index == 0:
                signs = torch.randint(2, (self.side,), generator=generator) * 2 - 1
                mix.mul_(signs.reshape(-1, 1, 2).to(mix))

    @property
    def side(self) -> int:
        """N."""
        side: int = 1 << self.depth
        return side

    def _factors(self, mixes: Float[Tensor, " count"]) -> list[Float[Tensor, "runs outputs 2"]]:
        """The numbers of each factor, two for each output of each of its runs."""
        found, taken = [], 0
        for index in range(self.depth):
            runs = self.side >> (index + 1)
            outputs = min(2 << index, self.kept)
            size = runs * outputs * 2
            found.append(mixes[taken : taken + size].view(runs, outputs, 2))
            taken += size
        return found

    def _merged(
        self,
    ) -> tuple[Float[Tensor, "runs size size"] | None, Float[Tensor, "size outputs runs"]]:
        if self.shared == 0:
            return None, self._joined(0)
        first = merged(self._whole(), Run(0, 0, self.shared, increasing=True))
        return first[0, 0, :, 0], self._joined(self.shared)

    def _whole(self) -> Float[Tensor, "1 1 factors pairs 2 2"]:
        """The factors of whole runs as those of a butterfly, zeros where no output is kept."""
        found = []
        for index, mix in enumerate(self._factors(self.mixes)[: self.full]):
            half = 1 << index
            padded = functional.pad(mix, (0, 0, 0, 2 * half - mix.shape[1]))
            pairs = padded.reshape(-1, 2, half, 2).transpose(1, 2)
            found.append(pairs.reshape(-1, 2, 2))
        return torch.stack(found)[None, None]

    def _joined(self, low: int) -> Float[Tensor, "size outputs runs"]:
        """All factors but the `low` first, merged: matrices over positions that are alike below."""
        factors = self._factors(self.mixes)
        weights = self.mixes.new_ones(1, self.kept)
        for mix in reversed(factors[self.full :]):
            weights = (weights[:, None] * mix.transpose(1, 2)).reshape(-1, self.kept)
        size = 1 << low
        outputs = -(-self.kept // size)
        weights = functional.pad(weights, (0, outputs * size - self.kept))
        weights = weights.reshape(-1, outputs, size).permute(2, 1, 0)[..., None]
        if self.full == low:
            return weights.flatten(2)
        blocks = merged(self._whole(), Run(low, low, self.full, increasing=True))[0, 0]
        blocks = blocks[:, :, :outputs].permute(1, 2, 0, 3)
        return (weights * blocks).flatten(2)
