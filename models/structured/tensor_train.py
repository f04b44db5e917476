"""Tensor train: W[(i1, .., id), (j1, .., jd)] = G1[i1, j1] .. Gd[id, jd], G of rank x rank."""

from math import prod
from typing import final

import tensorly
import torch
from jaxtyping import Float
from tensorly.decomposition import tensor_train_matrix
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias, draw_normal
from models.structured.batched import padded
from models.structured.descent import descend
from models.structured.output_error import best_scale
from models.structures import TensorTrain

# L-BFGS on the matrix that the cores amount to: some 0.5 s a step at 768 x 3072 with C.
STEPS = 40


@final
class TensorTrainLinear(StructuredLinear[TensorTrain]):
    """y = the cores contracted with x one after the other, plus b."""

    def __init__(
        self,
        structure: TensorTrain,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.forwards = structure.forwards
        self.cores = nn.ParameterList(torch.zeros(core, dtype=dtype) for core in structure.cores)

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """One product for each core, from the end where that takes less."""
        waiting, done = prod(self.spec.column_modes), 1
        state = padded(x, waiting).reshape(-1, waiting)
        order = list(zip(self.spec.cores, self.cores, strict=True))
        for (before, row, column, after), core in order if self.forwards else order[::-1]:
            waiting //= column
            if self.forwards:
                state = state.reshape(-1, done, before, column, waiting).permute(0, 1, 4, 2, 3)
                weight = core.permute(0, 2, 1, 3).reshape(before * column, row * after)
                found = state.reshape(-1, before * column) @ weight
                state = found.reshape(-1, done, waiting, row, after).permute(0, 1, 3, 4, 2)
            else:
                state = state.reshape(-1, waiting, column, after, done).permute(0, 1, 4, 2, 3)
                weight = core.permute(2, 3, 0, 1).reshape(column * after, before * row)
                found = state.reshape(-1, column * after) @ weight
                state = found.reshape(-1, waiting, done, before, row).permute(0, 1, 3, 4, 2)
            done *= row
        return add_bias(state.reshape(*x.shape[:-1], done)[..., : self.rows], bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The cores, contracted and cropped."""
        found: Tensor = self.cores[0].squeeze(0)
        for core in list(self.cores)[1:]:
            found = torch.einsum("ijl,lmnr->imjnr", found, core)
            found = found.flatten(0, 1).flatten(1, 2)
        return found[: self.rows, : self.columns, 0]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """TT-SVD (Oseledets 2011), exact for members; with padding or C, descent from there."""
        row_modes, column_modes = self.spec.row_modes, self.spec.column_modes
        tall, wide = prod(row_modes) - self.rows, prod(column_modes) - self.columns
        whole = functional.pad(weight.double(), (0, wide, 0, tall))
        whole = whole.reshape(*row_modes, *column_modes)
        # Somebody else in this process may have chosen another backend.
        with tensorly.backend_context("numpy", local_threadsafe=True):
            found = tensor_train_matrix(whole.cpu().numpy(), rank=(1, *self.spec.ranks, 1))
        for core, numbers in zip(self.cores, found, strict=True):
            core.copy_(torch.from_numpy(numbers))
        self._balance()
        if tall or wide:
            descend(self, weight, steps=STEPS)
        if second_moment is not None:
            self.cores[0].mul_(best_scale(self.to_dense(), weight, second_moment))
            descend(self, weight, second_moment, steps=STEPS)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw all cores, then scale the last: few numbers that are shared vary much."""
        for core, fan_in in zip(self.cores, self._fan_ins(), strict=True):
            draw_normal(core, fan_in=fan_in, generator=generator)
        self.cores[-1].mul_((self.rows / self.to_dense().square().sum()).sqrt())

    def fan_ins(self) -> dict[str, float]:
        """A column mode and the rank that arrives with it."""
        return {f"cores.{index}": fan_in for index, fan_in in enumerate(self._fan_ins())}

    def _fan_ins(self) -> list[int]:
        arriving = 0 if self.forwards else 3
        return [core[2] * core[arriving] for core in self.spec.cores]

    def _balance(self) -> None:
        """Give all cores the same norm, which descent likes; their product stays."""
        norms = torch.stack([core.double().norm() for core in self.cores])
        if (norms > 0).all():
            for core, norm in zip(self.cores, norms, strict=True):
                core.mul_(norms.log().mean().exp() / norm)
