"""Block sparse: W is zero but for dense t x t tiles W_ij at given places of a grid."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.structured import tile_choice
from models.structured.base import StructuredLinear, add_bias, draw_normal
from models.structured.batched import padded
from models.structured.block_grid import grid_moment
from models.structured.checks import check_target
from models.structured.error_curve import ErrorCurve, remaining
from models.structured.output_error import outputs
from models.structures import BlockSparse
from models.structures.base import check_range, matrix_in_words

# Up to so many inputs all tiles are one batched product; for more, moving its outputs would take
# longer than the products, and each band of rows is one product instead.
FEW_INPUTS = 16


@final
class BlockSparseLinear(StructuredLinear[BlockSparse]):
    """y_i = sum_j W_ij x_j over the tiles of each row band i, plus b.

    `tiles` holds the W_ij^T in the order of the positions, band by band: those of one band, below
    each other, are one matrix.
    """

    tile_rows: Int[Tensor, " tiles"]
    tile_columns: Int[Tensor, " tiles"]

    def __init__(
        self,
        structure: BlockSparse,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        count, side = len(structure.positions), structure.tile
        self.tiles = nn.Parameter(torch.zeros(count, side, side, dtype=dtype))
        self.grid = structure.grid(rows=rows, columns=columns)
        places = torch.tensor(structure.positions)
        self.counts = torch.bincount(places[:, 0], minlength=self.grid[0]).tolist()
        self.register_buffer("tile_rows", places[:, 0].contiguous(), persistent=False)
        self.register_buffer("tile_columns", places[:, 1].contiguous(), persistent=False)

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Gather each band's inputs, and multiply."""
        side, across = self.spec.tile, self.grid[1]
        inputs = padded(x.reshape(-1, self.columns), across * side).unflatten(1, (across, side))
        if not torch.compiler.is_compiling() and len(inputs) <= FEW_INPUTS:
            y = self._at_once(inputs)
        else:
            y = self._band_by_band(inputs)
        return add_bias(y[:, : self.rows].reshape(*x.shape[:-1], self.rows), bias)

    def _at_once(self, inputs: Tensor) -> Tensor:
        gathered = inputs.index_select(1, self.tile_columns).transpose(0, 1)
        parts = torch.bmm(gathered, self.tiles)
        y = parts.new_zeros(self.grid[0], len(inputs), self.spec.tile)
        return y.index_add(0, self.tile_rows, parts).transpose(0, 1).flatten(1)

    def _band_by_band(self, inputs: Tensor) -> Tensor:
        bands = []
        for tiles, columns in zip(
            torch.split(self.tiles, self.counts),
            torch.split(self.tile_columns, self.counts),
            strict=True,
        ):
            gathered = inputs.index_select(1, columns).flatten(1)
            bands.append(functional.linear(gathered, tiles.flatten(0, 1).T))
        return torch.cat(bands, 1)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The tiles at their places, cropped."""
        empty = self.tiles.new_zeros(*self.grid, self.spec.tile, self.spec.tile)
        whole = empty.index_put((self.tile_rows, self.tile_columns), self.tiles.transpose(1, 2))
        return whole.transpose(1, 2).flatten(2).flatten(0, 1)[: self.rows, : self.columns]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Crop; or, given C, the least-squares solution W_i C[:, J] C[J, J]^-1 of each band."""
        blocks = _tiles(weight, self.spec.tile)
        if second_moment is None:
            self.tiles.copy_(blocks[self.tile_rows, self.tile_columns].transpose(1, 2))
            return
        bands = blocks.transpose(1, 2).flatten(2)
        moment = grid_moment(second_moment, bands.shape[2])
        cross = bands @ moment
        inside = torch.arange(bands.shape[2]).view(self.grid[1], self.spec.tile)
        columns_of_bands = torch.split(self.tile_columns, self.counts)
        found = []
        for band, tiles in enumerate(columns_of_bands):
            chosen = inside[tiles].flatten()
            root = torch.linalg.cholesky(moment[chosen[:, None], chosen])
            solution = torch.cholesky_solve(cross[band][:, chosen].T, root)
            found.append(solution.view(len(tiles), self.spec.tile, self.spec.tile))
        self.tiles.copy_(torch.cat(found))

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw every tile; a row's variance is shared by all columns of the tiles of its band."""
        starts = self.tile_columns * self.spec.tile
        widths = (self.columns - starts).clamp(max=self.spec.tile)
        totals = torch.zeros_like(widths).new_zeros(self.grid[0])
        fan_in = totals.index_add(0, self.tile_rows, widths)[self.tile_rows]
        draw_normal(self.tiles, fan_in=fan_in[:, None, None], generator=generator)

    def fan_ins(self) -> dict[str, float]:
        """The columns of a row's tiles, in the mean over all tiles."""
        share = sum(count**2 for count in self.counts) / len(self.tiles)
        return {"tiles": self.spec.tile * share}


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    tile: int,
) -> ErrorCurve:
    """Every number of tiles at once, those of largest energy first: exact for the weight.

    For its outputs, the tiles of each band that fit them best together, chosen one by one
    (`tile_choice`), or those of largest energy wherever they are the better choice. The error is
    exact as far as measuring it takes some tenths of a second (768 x 768: all sizes; 768 x 3072: a
    quarter), behind that a bound from above.
    """
    check_target(weight, second_moment)
    rows, columns = weight.shape
    where = matrix_in_words(rows=rows, columns=columns)
    check_range("tile", tile, low=1, high=max(rows, columns), where=where)
    blocks = _tiles(weight, tile)
    energies = blocks.square().sum((2, 3))
    plain = energies.flatten().argsort(descending=True, stable=True)
    orders, errors = [plain], remaining(energies.flatten()[plain])
    better = torch.zeros_like(plain)
    if second_moment is not None:
        matrix = blocks.transpose(1, 2).flatten(2).flatten(0, 1)
        moment = grid_moment(second_moment, matrix.shape[1])
        seen = outputs(weight, second_moment) if matrix.shape == weight.shape else matrix @ moment
        order, gains = tile_choice.choose(seen, moment, tile=tile)
        orders = [order, plain]
        explained = torch.stack(
            [
                tile_choice.explained(seen, moment, order, gains),
                tile_choice.explained(seen, moment, plain, torch.zeros_like(gains)),
            ]
        )
        most, better = explained.max(0)
        whole = (seen * matrix).sum()
        errors = (1 - most / torch.where(whole > 0, whole, 1)).clamp(min=0) * (whole > 0)
    across = blocks.shape[1]
    sizes = torch.arange(1, len(plain) + 1) * tile**2

    def structure(index: int) -> BlockSparse:
        places = orders[int(better[index])][: index + 1].tolist()
        return BlockSparse(tile=tile, positions=tuple((p // across, p % across) for p in places))

    return ErrorCurve(macs=sizes, parameters=sizes, errors=errors, member=structure)


def _tiles(weight: Tensor, tile: int) -> Tensor:
    rows, columns = weight.shape
    height, width = -(-rows // tile), -(-columns // tile)
    missing = (0, width * tile - columns, 0, height * tile - rows)
    matrix = functional.pad(weight.detach().double(), missing)
    return matrix.view(height, tile, width, tile).transpose(1, 2)
