"""Butterfly: W = Re(B_k ... B_2 B_1 P), each B a product of log2 n factors of 2x2 mixes."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias
from models.structured.butterfly_factors import apply_runs, factorised, runs
from models.structured.descent import best_of_restarts, descend
from models.structured.output_error import best_scale
from models.structures import Butterfly
from models.structures.butterfly import levels, padded_length, padded_side

# Of descent, the more in small matrices. Of 768 x 3072 noise, whose error is .993 at the start, 10
# leave .988, 20 .984 and 40 .982.
STEPS, STEPS_IF_SMALL, SMALL = 20, 60, 64
NOISE = 0.1  # on restarts: at real numbers the error is stationary in all imaginary parts


@final
class ButterflyLinear(StructuredLinear[Butterfly]):
    """y = Re(B_k ... B_1 P x) + b, neighbouring factors merged into blocks of up to 32 x 32.

    Merged blocks multiply more than the 2 x 2 mixes that are counted, in less time.
    """

    def __init__(
        self,
        structure: Butterfly,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.side = padded_side(rows, columns)
        self.copies = padded_length(rows, columns) // self.side
        self.tall = rows >= columns
        self.levels = levels(min(rows, columns))
        increasing = structure.strides == "increasing"
        self.plan = list(runs(self.levels, structure.blocks, increasing=increasing))
        parts = 2 if structure.numbers == "complex" else 1
        shape = (parts, self.copies, structure.blocks * self.levels, self.side // 2, 2, 2)
        self.mixes = nn.Parameter(torch.zeros(shape, dtype=dtype))
        order = bit_reversal(self.levels) if structure.bit_reversal else None
        self.register_buffer("order", order, persistent=False)
        self.order: Tensor | None

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """The runs of factors, one batched product each."""
        inputs = x.reshape(-1, self.columns)
        found = self._act(inputs)
        y = found.T.reshape(*x.shape[:-1], len(found))[..., : self.rows]
        return add_bias(y, bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The runs of factors, applied to the identity."""
        identity = torch.eye(self.columns, dtype=self.mixes.dtype, device=self.mixes.device)
        return self._act(identity)[: self.rows]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Factorise by hierarchy into the first block, then descend from there and near it.

        Exact for one real block; more of them, and complex numbers, are a gradient fit. The matrix
        is taken at a root mean square of 1, as factors of uneven size are one tensor to descent.
        """
        size = float(weight.double().square().mean().sqrt()) or 1.0
        weight = weight.double() / size
        mixes = torch.zeros_like(self.mixes, dtype=torch.float64)
        mixes[0] = torch.eye(2).to(mixes)
        first = self._first_block(weight)
        mixes[0, :, : self.levels] = first.real
        if len(mixes) == 2 and first.is_complex():
            mixes[1, :, : self.levels] = first.imag
        is_closed = len(mixes) == 1 and self.spec.blocks == 1

        def start(attempt: int) -> None:
            noise = torch.randn(mixes.shape, generator=generator, dtype=mixes.dtype).to(mixes)
            scale = mixes.square().mean().sqrt() * NOISE * attempt
            self.mixes.copy_(mixes + scale * noise)
            self._rescale(weight, None)

        restarts = 1 if is_closed else 2
        steps = STEPS_IF_SMALL if self.side <= SMALL else STEPS
        best_of_restarts(self, weight, None, start, restarts=restarts, steps=steps)
        if second_moment is not None:
            self._rescale(weight, second_moment)
            descend(self, weight, second_moment, steps=steps)
        self.mixes.mul_(size ** (1 / self.mixes.shape[2]))

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw rotations, unitary where complex: their products keep every vector's length."""
        shape = self.mixes.shape[1:-2]
        turn = 2 * math.pi
        angle, *phases = turn * torch.rand(4, *shape, generator=generator, dtype=torch.float64)
        first, second, third = phases
        cosine, sine = angle.cos(), angle.sin()
        if len(self.mixes) == 1:
            mixes = torch.stack([cosine, -sine, sine, cosine], -1)[None]
        else:
            phase = torch.stack([first + second, first + third, first - third, first - second], -1)
            modulus = torch.stack([cosine, -sine, sine, cosine], -1)
            mixes = torch.stack([modulus * phase.cos(), modulus * phase.sin()])
        # Padding takes its share of the variance, and so does the imaginary part.
        gain = math.sqrt(len(self.mixes) * self._padded_columns / self.columns)
        if not self.tall:
            gain /= math.sqrt(self.copies)
        gain **= 1 / shape[1]
        self.mixes.copy_(gain * mixes.reshape(self.mixes.shape))

    def fan_ins(self) -> dict[str, float]:
        """Every factor's outputs mix two numbers, or two complex ones; all factors are stacked."""
        parts, _, factors = self.mixes.shape[:3]
        return {"mixes": 2 * parts * factors}

    @property
    def _padded_columns(self) -> int:
        return self.side if self.tall else self.copies * self.side

    def _act(self, inputs: Float[Tensor, "batch columns"]) -> Float[Tensor, "outputs batch"]:
        missing = self._padded_columns - self.columns
        if missing:
            inputs = functional.pad(inputs, (0, missing))
        if self.order is not None:
            copies = self._padded_columns // self.side
            pieces = inputs.reshape(inputs.shape[0], copies, self.side)
            inputs = pieces.index_select(2, self.order).flatten(1)
        return apply_runs(self.mixes, self.plan, inputs.T, tall=self.tall)

    def _rescale(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
    ) -> None:
        self.mixes[:, :, 0] *= best_scale(self.to_dense(), weight, second_moment)

    def _first_block(
        self, weight: Float[Tensor, "rows columns"]
    ) -> Float[Tensor, "copies factors pairs 2 2"]:
        length = self.copies * self.side
        height, width = (length, self.side) if self.tall else (self.side, length)
        padded = functional.pad(weight, (0, width - self.columns, 0, height - self.rows))
        if self.tall:
            matrices = padded.reshape(self.copies, self.side, self.side)
        else:
            matrices = padded.reshape(self.side, self.copies, self.side).transpose(0, 1)
        if self.order is not None:
            matrices = matrices[:, :, self.order]
        real_part = len(self.mixes) == 2
        if self.spec.strides == "increasing":
            return factorised(matrices, real_part=real_part)
        found = factorised(matrices.transpose(1, 2), real_part=real_part)
        return found.flip(1).transpose(-1, -2)


def bit_reversal(levels: int) -> Tensor:
    """The permutation of 2^levels positions that reads their bits backwards."""
    order = torch.arange(1 << levels).reshape((2,) * levels)
    return order.permute(*reversed(range(levels))).flatten()
