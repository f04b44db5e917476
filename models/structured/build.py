"""From a structure to its layer: the only place that names them all."""

from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from models.spec import BlockDiagonal, Dense, Gblr, LayerSpec, LowRank, Structure
from models.structured.base import StructuredLinear
from models.structured.block_diagonal import BlockDiagonalLinear
from models.structured.dense import DenseLinear
from models.structured.gblr import GblrLinear
from models.structured.low_rank import LowRankLinear


def empty_layer(
    structure: Structure,
    *,
    rows: int,
    columns: int,
    bias: bool = True,
    dtype: torch.dtype | None = None,
) -> StructuredLinear:
    """The layer with all numbers zero, to be filled from a file or a projection."""
    match structure:
        case Dense():
            return DenseLinear(rows=rows, columns=columns, bias=bias, dtype=dtype)
        case LowRank():
            return LowRankLinear(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        case BlockDiagonal():
            return BlockDiagonalLinear(
                structure, rows=rows, columns=columns, bias=bias, dtype=dtype
            )
        case Gblr():
            return GblrLinear(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        case _:
            assert_never(structure)


def build_layer(
    structure: Structure,
    *,
    rows: int,
    columns: int,
    bias: bool = True,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> StructuredLinear:
    """The layer, initialised to be trained from scratch."""
    layer = empty_layer(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
    layer.reset_parameters(generator)
    return layer


def layer_of(spec: LayerSpec, *, generator: torch.Generator) -> StructuredLinear:
    """The layer that a network's table asks for."""
    return build_layer(
        spec.structure, rows=spec.rows, columns=spec.columns, bias=spec.bias, generator=generator
    )


def project(
    weight: Float[Tensor, "rows columns"],
    structure: Structure,
    *,
    bias: Float[Tensor, " rows"] | None = None,
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> StructuredLinear:
    """The layer of this structure nearest to a dense one: by weight, or given C by its output."""
    match structure:
        case Dense():
            return DenseLinear.from_dense(weight, bias=bias)
        case LowRank():
            return LowRankLinear.from_dense(
                weight, structure, bias=bias, second_moment=second_moment
            )
        case BlockDiagonal():
            return BlockDiagonalLinear.from_dense(
                weight, structure, bias=bias, second_moment=second_moment
            )
        case Gblr():
            return GblrLinear.from_dense(weight, structure, bias=bias, second_moment=second_moment)
        case _:
            assert_never(structure)
