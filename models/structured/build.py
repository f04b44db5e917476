"""From a structure to its layer, empty, drawn from scratch or projected."""

import torch
from jaxtyping import Float
from torch import Tensor

from models.spec import LayerSpec
from models.structured.base import StructuredLinear
from models.structured.plain import plain_class
from models.structured.sums import SumLinear
from models.structures import Structure, Sum


def layer_class(structure: Structure) -> type[StructuredLinear]:
    """The class whose layers have this structure."""
    return SumLinear if isinstance(structure, Sum) else plain_class(structure)


def empty_layer(
    structure: Structure,
    *,
    rows: int,
    columns: int,
    bias: bool = True,
    dtype: torch.dtype | None = None,
) -> StructuredLinear:
    """The layer with all numbers zero, to be filled from a file or a projection."""
    return layer_class(structure)(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)


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
    generator: torch.Generator | None = None,
) -> StructuredLinear:
    """The layer of this structure nearest to a dense one: by weight, or given C by its output."""
    return layer_class(structure).from_dense(
        weight, structure, bias=bias, second_moment=second_moment, generator=generator
    )
