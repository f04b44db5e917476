"""Circulant: W[i, j] = c[(i - j) mod n], n the longer side, multiplied by Fourier transforms."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.structured.base import StructuredLinear, add_bias
from models.structured.fourier import as_called, signal, spectrum
from models.structured.output_error import regularised
from models.structures import Circulant
from models.structures.fourier import wrapped_length


@final
class CirculantLinear(StructuredLinear[Circulant]):
    """y = F^-1 (F c * F x) + b: x is padded to n numbers, y cropped."""

    def __init__(
        self,
        structure: Circulant,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        self.size = max(rows, columns)
        self.length = wrapped_length(self.size, sign=1)
        self.first_column = nn.Parameter(torch.zeros(self.size, dtype=dtype))

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Two transforms; where n is no fast length, of the convolution that is not yet wrapped."""
        column = spectrum(self.first_column, self.length)
        y = signal(column * spectrum(x, self.length), self.length)
        if self.length > self.size:
            y = y[..., : self.size] + y[..., self.size : 2 * self.size]
        return add_bias(as_called(y[..., : self.rows], x), bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """Every number where it stands."""
        # Unlike indexing, its gradient sums up in the same order whatever the threads.
        numbers = self.first_column.index_select(0, self._offsets().flatten())
        return numbers.view(self.rows, self.columns)

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """The mean of each diagonal; given C, the least squares of the outputs: both are exact."""
        target = weight.double()
        if second_moment is None:
            found = self._diagonal_sums(target) / self._diagonal_sums(torch.ones_like(target))
        else:
            moment = regularised(second_moment)
            sums = self._diagonal_sums(target @ moment)
            found = torch.linalg.solve(self._normal_matrix(moment), sums)
        self.first_column.copy_(found)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw the numbers; their energy is set, for it is all the variance there is."""
        drawn = torch.randn(self.size, generator=generator, dtype=torch.float64)
        energy = drawn[self._offsets().cpu()].square().sum() / self.rows
        self.first_column.copy_(drawn / energy.sqrt())

    def fan_ins(self) -> dict[str, float]:
        """Every output sums up all columns."""
        return {"first_column": self.columns}

    def _offsets(self) -> Int[Tensor, "rows columns"]:
        device = self.first_column.device
        row = torch.arange(self.rows, device=device)[:, None]
        return (row - torch.arange(self.columns, device=device)) % self.size

    def _diagonal_sums(self, matrix: Tensor) -> Tensor:
        sums = matrix.new_zeros(self.size)
        return sums.index_add(0, self._offsets().flatten(), matrix.flatten())

    def _normal_matrix(self, moment: Tensor) -> Tensor:
        """N[k, l] = sum over rows i of C[i - k, i - l]: a window of every wrapped diagonal of C."""
        padded = moment.new_zeros(self.size, self.size)
        padded[: self.columns, : self.columns] = moment
        index = torch.arange(self.size, device=moment.device)
        diagonals = padded[index, (index - index[:, None]) % self.size]  # lag x position
        twice = torch.cat([diagonals, diagonals], dim=1).cumsum(1)
        twice = torch.cat([twice.new_zeros(self.size, 1), twice], dim=1)
        start = -index % self.size  # of row 0, at offset k
        lag = (index - index[:, None]) % self.size  # of offsets k and l
        return twice[lag, (start + self.rows)[:, None]] - twice[lag, start[:, None]]
