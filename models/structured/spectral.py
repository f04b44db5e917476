"""Spectral layers: W = U diag(s) V^T, U and V trains of orthonormal cores, cropped to W's size."""

from abc import ABC
from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias
from models.structured.frame_train import (
    FrameTrain,
    contracted,
    expanded,
    inner_projection,
    lifted,
)
from models.structured.low_rank import factors
from models.structured.output_error import output_energy
from models.structures import Sttp, Svdp

P = TypeVar("P", bound=Svdp | Sttp)
Parts = tuple[Tensor, Tensor, Tensor]  # U, s and V, padded

SWEEPS = 4  # of fitting U to W V, and V to W^T U
FITTED = 1e-26  # a gain in the relative squared error that is only rounding
BOUNDED_START = 0.9  # all singular values of a bounded spectrum: below 1, where its slope breaks


class SpectralLinear(StructuredLinear[P], ABC):
    """y = U (s * (V^T x)) + b. The frames are made of their reflections once for every call."""

    def __init__(
        self,
        structure: P,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        row_train, column_train = structure.sides(rows=rows, columns=columns)
        self.row_frame = FrameTrain(row_train, dtype=dtype)
        self.column_frame = FrameTrain(column_train, dtype=dtype)
        self.singular_values = (
            None
            if structure.spectrum == "unit"
            else nn.Parameter(torch.zeros(structure.rank, dtype=dtype))
        )

    @final
    def spectrum(self) -> Float[Tensor, " rank"]:
        """S as it acts: a bounded one is divided by its largest magnitude where that is above 1."""
        if self.singular_values is None:
            first = self.row_frame.cores[0]
            return torch.ones(self.spec.rank, dtype=first.dtype, device=first.device)
        if self.spec.spectrum == "bounded":
            return self.singular_values / self.singular_values.abs().max().clamp(min=1)
        return self.singular_values

    @final
    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """W x through V, the spectrum, which is merged into V, and U."""
        columns = self.column_frame.groups()
        columns[-1] = columns[-1] * self.spectrum()
        padded = self.column_frame.train_sizes.padded
        z = contracted([group.to(x.dtype) for group in columns], x, padded)
        rows = [group.to(x.dtype) for group in self.row_frame.groups()]
        if len(rows) == 1:
            return functional.linear(z, rows[0], bias)
        return add_bias(expanded(rows, z, self.rows), bias)

    @final
    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """U diag(s) V^T."""
        row_factor, column_factor = self.thin_factors()
        return (row_factor @ column_factor).to(self.row_frame.cores[0].dtype)

    @final
    def thin_factors(self) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
        """U and diag(s) V^T, for a low-rank layer that need not make its frames at every call."""
        return self.row_frame.whole(), (self.column_frame.whole() * self.spectrum()).T

    @final
    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw both frames evenly; all singular values are equal and keep the output's variance.

        Where the spectrum is bounded, no more than rank / rows of it can be kept.
        """
        self.row_frame.draw(generator)
        self.column_frame.draw(generator)
        if self.singular_values is None:
            return
        padded = self.row_frame.train_sizes.padded * self.column_frame.train_sizes.padded
        size = (padded / (self.spec.rank * self.columns)) ** 0.5
        bounded = self.spec.spectrum == "bounded"
        self.singular_values.fill_(min(size, BOUNDED_START) if bounded else size)

    @final
    def fan_ins(self) -> dict[str, float]:
        """A core of V sums up its rows, a core of U its columns.

        Orthonormal cores of U expand a numbers to c without keeping each one's variance, which the
        spectrum makes good: that counts as sqrt(a c), and the spectrum as sqrt(rank / rows).
        """
        found: dict[str, float] = {}
        if self.singular_values is not None:
            found["singular_values"] = (self.spec.rank / self.rows) ** 0.5
        for core in range(len(self.row_frame.cores)):
            expanded, summed = self.row_frame.train_sizes.core_shape(core)
            found[f"row_frame.cores.{core}"] = (expanded * summed) ** 0.5
        for core in range(len(self.column_frame.cores)):
            found[f"column_frame.cores.{core}"] = self.column_frame.train_sizes.core_shape(core)[0]
        return found

    @final
    def allowed(self, spectrum: Float[Tensor, " rank"]) -> Float[Tensor, " rank"]:
        """The nearest spectrum that this structure may have."""
        match self.spec.spectrum:
            case "unit":
                return torch.ones_like(spectrum)
            case "bounded":
                return spectrum.clamp(-1, 1)
            case _:
                return spectrum

    @final
    def set_parts(self, parts: Parts) -> None:
        """Copy U, s and V into the reflections, whose columns may turn out with other signs."""
        left, spectrum, right = parts
        if self.singular_values is None:
            # The rotation that V's space leaves open is U's to make, to the sign.
            turn = self.column_frame.set_frame(right, signed=False)
            self.row_frame.set_frame(left @ turn.T, signed=True)
            return
        signs = self.row_frame.set_frame(left, signed=False).diagonal()
        signs = signs * self.column_frame.set_frame(right, signed=False).diagonal()
        self.singular_values.copy_(spectrum * signs.sign())

    @final
    def best_start(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        starts: list[Parts],
    ) -> None:
        """Take the start with the least output error; zero, where that is less and allowed.

        Measured on the layer: cropped frames and signs may come out other than they were asked for.
        """
        errors = []
        for parts in starts:
            self.set_parts(parts)
            errors.append(float(output_energy(weight - self.to_dense(), second_moment)))
        best = min(range(len(starts)), key=errors.__getitem__)
        self.set_parts(starts[best])
        if self.singular_values is not None and errors[best] > output_energy(weight, second_moment):
            self.singular_values.zero_()

    @final
    def projected(self, weight: Float[Tensor, "rows columns"]) -> Parts:
        """U, s and V nearest to a float64 matrix: exact for single cores, else quasi-optimal.

        The successive spaces of a TT-SVD on both sides and an SVD of what is left between them;
        then each frame is fitted anew to what the other leaves of W, as long as that helps.
        """
        row_train, column_train = self.row_frame.train_sizes, self.column_frame.train_sizes
        padding = (0, column_train.padded - self.columns, 0, row_train.padded - self.rows)
        matrix = functional.pad(weight, padding)
        row_cores, rest = inner_projection(matrix, row_train)
        column_cores, middle = inner_projection(rest.T, column_train)
        best, last = self._around(middle.T, row_cores, column_cores)
        if not (row_cores or column_cores):
            return best
        energy = float(matrix.square().sum())
        for _ in range(SWEEPS):
            row_cores, rest = inner_projection(matrix @ best[2], row_train)
            last_core = torch.linalg.qr(rest).Q
            left = lifted(row_cores, last_core)
            column_cores, rest = inner_projection(matrix.T @ left, column_train)
            found, error = self._around(last_core @ rest.T, row_cores, column_cores)
            if error >= last - FITTED * energy:
                break
            best, last = found, error
        return best

    def _around(
        self, middle: Tensor, row_cores: list[Tensor], column_cores: list[Tensor]
    ) -> tuple[Parts, float]:
        """The parts with these inner cores, and their squared error less that of zero."""
        left, singular, right = torch.linalg.svd(middle, full_matrices=False)
        rank = self.spec.rank
        spectrum = self.allowed(singular[:rank])
        change = float((spectrum.square() - 2 * spectrum * singular[:rank]).sum())
        parts = (
            lifted(row_cores, left[:, :rank]),
            spectrum,
            lifted(column_cores, right[:rank].T),
        )
        return parts, change

    @final
    def output_optimal(
        self, weight: Float[Tensor, "rows columns"], second_moment: Float[Tensor, "columns columns"]
    ) -> Parts:
        """The low-rank matrix with the least output error, its spectrum as allowed."""
        row_factor, column_factor = factors(weight, self.spec.rank, second_moment)
        left, left_rest = torch.linalg.qr(row_factor)
        right, right_rest = torch.linalg.qr(column_factor.T)
        inner, singular, outer = torch.linalg.svd(left_rest @ right_rest.T)
        return left @ inner, self.allowed(singular), right @ outer.T
