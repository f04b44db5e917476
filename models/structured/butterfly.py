"""Butterfly: W = Re(B_k ... B_2 B_1 P), each B a product of log2 n factors of 2x2 mixes."""

import math
from typing import final

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias
from models.structured.butterfly_complex import complex_factors
from models.structured.butterfly_factors import apply_runs, factorised, runs
from models.structured.butterfly_newton import Target, refined, strides
from models.structured.butterfly_pairs import paired_factors
from models.structured.descent import best_of_restarts, descend
from models.structured.output_error import best_scale
from models.structures import Butterfly
from models.structures.butterfly import levels, padded_length, padded_side

# Of descent, the more in small matrices. Of 768 x 3072 noise, whose error is .993 at the start, 10
# leave .988, 20 .984 and 40 .982.
STEPS, STEPS_IF_SMALL, SMALL = 20, 60, 64
# Relative squared errors of a closed form that is worth refining, and of one to keep.
HOPEFUL, NEAR = 0.3, 0.03
# Gauss-Newton steps, each of which solves for all numbers of a copy at once. They are taken from
# every start up to that side, and where each entry has so many numbers: a few then lead to zero.
NEWTON_STEPS, SMALLEST, ABUNDANT, MOST_NUMBERS = 50, 8, 3, 1024
# Where a closed form exists but has found nothing, the matrix hardly is a butterfly: then a copy is
# left at whose error six steps leave more than this share, and descent has little to add.
NEEDED_PROGRESS, STEPS_AFTER_NEWTON = 0.8, 10
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
        """Find a planted butterfly in closed form; else descend from a first block, and near it.

        One block and two real ones have a closed form, which is refined where it comes near. For
        more of them, and two complex ones, there is only descent: in the smallest matrices after
        Gauss-Newton steps. The matrix is taken at a root mean square of 1, as factors of uneven
        size are one tensor to descent.
        """
        size = float(weight.double().square().mean().sqrt()) or 1.0
        weight = weight.double() / size
        found = self._closed_form(weight)
        is_closed = found is not None
        mixes = torch.zeros_like(self.mixes, dtype=torch.float64)
        if found is not None:
            mixes.copy_(found)
        else:
            mixes[0] = torch.eye(2).to(mixes)
            first = self._first_block(weight)
            mixes[: 1 + first.is_complex(), :, : self.levels] = _parts(first)[: len(mixes)]

        def start(attempt: int) -> None:
            noise = torch.randn(mixes.shape, generator=generator, dtype=mixes.dtype).to(mixes)
            scale = mixes.square().mean().sqrt() * NOISE * attempt
            self.mixes.copy_(mixes + scale * noise)
            self._rescale(weight, None)
            if not is_closed and self._takes_newton:
                progress = NEEDED_PROGRESS if self._has_closed_form else 1.0
                self.mixes.copy_(self._refined(self.mixes.double(), weight, progress))

        restarts = 1 if is_closed else 2
        steps = STEPS_IF_SMALL if self.side <= SMALL else STEPS
        is_hopeless = self._has_closed_form and not is_closed and self._takes_newton
        few = STEPS_AFTER_NEWTON if is_hopeless else steps
        best_of_restarts(self, weight, None, start, restarts=restarts, steps=few)
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
    def _has_closed_form(self) -> bool:
        return len(self.mixes) * self.spec.blocks <= 2

    @property
    def _takes_newton(self) -> bool:
        numbers = self.mixes.numel() // self.copies
        is_easy = self.side <= SMALLEST or numbers >= ABUNDANT * self.side**2
        return is_easy and numbers <= MOST_NUMBERS

    @property
    def _padded_columns(self) -> int:
        return self.side if self.tall else self.copies * self.side

    def _act(
        self, inputs: Float[Tensor, "batch columns"], mixes: Tensor | None = None
    ) -> Float[Tensor, "outputs batch"]:
        missing = self._padded_columns - self.columns
        if missing:
            inputs = functional.pad(inputs, (0, missing))
        if self.order is not None:
            copies = self._padded_columns // self.side
            pieces = inputs.reshape(inputs.shape[0], copies, self.side)
            inputs = pieces.index_select(2, self.order).flatten(1)
        mixes = self.mixes if mixes is None else mixes
        return apply_runs(mixes, self.plan, inputs.T, tall=self.tall)

    def _rescale(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
    ) -> None:
        self.mixes[:, :, 0] *= best_scale(self.to_dense(), weight, second_moment)

    def _closed_form(
        self, weight: Float[Tensor, "rows columns"]
    ) -> Float[Tensor, "parts copies factors pairs 2 2"] | None:
        """All numbers, if the matrix is nearly one of those that a closed form finds."""
        number_of_parts, blocks = len(self.mixes), self.spec.blocks
        increasing = self.spec.strides == "increasing"
        if (number_of_parts, blocks) == (1, 1):
            return _parts(self._first_block(weight))
        if not self._has_closed_form:
            return None
        matrices = self._squares(weight)
        if number_of_parts == 2:
            turned = matrices if increasing else matrices.mT
            complex_ones = complex_factors(turned)
            found = _parts(complex_ones if increasing else complex_ones.flip(1).mT)
        else:
            seen = self._squares(torch.ones_like(weight)) > 0
            rows, columns = seen.any(2), seen.any(1)
            factors = paired_factors(matrices, rows, columns, increasing=increasing)
            if factors is None:
                return None
            found = _parts(factors)
        error = self._relative_error(found, weight)
        if self.side <= SMALL and error <= HOPEFUL:
            found = self._refined(found, weight)
            error = self._relative_error(found, weight)
        return found if error <= NEAR else None

    def _relative_error(
        self, mixes: Float[Tensor, "parts copies factors pairs 2 2"], weight: Tensor
    ) -> float:
        eye = torch.eye(self.columns).to(mixes)
        dense = self._act(eye, mixes)[: self.rows]
        return float((dense - weight).square().sum() / weight.square().sum().clamp_min(1e-300))

    def _refined(
        self,
        mixes: Float[Tensor, "parts copies factors pairs 2 2"],
        weight: Float[Tensor, "rows columns"],
        progress: float = 1.0,
    ) -> Float[Tensor, "parts copies factors pairs 2 2"]:
        order = list(
            strides(self.levels, self.spec.blocks, increasing=self.spec.strides == "increasing")
        )
        matrices, seen = self._squares(weight), self._squares(torch.ones_like(weight)) > 0
        numbers = mixes[0] if len(mixes) == 1 else torch.complex(*mixes)
        target = Target(matrices, seen.any(2), seen.any(1))
        return _parts(refined(numbers, order, target, steps=NEWTON_STEPS, progress=progress))

    def _squares(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "copies side side"]:
        """The matrices that the copies stand for, zeros where the weight ends."""
        length = self.copies * self.side
        height, width = (length, self.side) if self.tall else (self.side, length)
        padded = functional.pad(weight, (0, width - self.columns, 0, height - self.rows))
        if self.tall:
            matrices = padded.reshape(self.copies, self.side, self.side)
        else:
            matrices = padded.reshape(self.side, self.copies, self.side).transpose(0, 1)
        return matrices if self.order is None else matrices[:, :, self.order]

    def _first_block(
        self, weight: Float[Tensor, "rows columns"]
    ) -> Num[Tensor, "copies factors pairs 2 2"]:
        matrices = self._squares(weight)
        real_part = len(self.mixes) == 2
        if self.spec.strides == "increasing":
            return factorised(matrices, real_part=real_part)
        found = factorised(matrices.transpose(1, 2), real_part=real_part)
        return found.flip(1).transpose(-1, -2)


def _parts(
    numbers: Num[Tensor, "copies factors pairs 2 2"],
) -> Float[Tensor, "parts copies factors pairs 2 2"]:
    """Real and imaginary, or the former alone."""
    if numbers.is_complex():
        return torch.stack([numbers.real, numbers.imag])
    return numbers[None]


def bit_reversal(levels: int) -> Tensor:
    """The permutation of 2^levels positions that reads their bits backwards."""
    order = torch.arange(1 << levels).reshape((2,) * levels)
    return order.permute(*reversed(range(levels))).flatten()
