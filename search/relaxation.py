"""Layers that exist only during a search: low-rank terms behind rectangles, beside an alternative.

Notation: a layer has `groups` rectangles of `group` rank-1 terms each. A support is the pair
(width, location) of one side of a rectangle, in fractions of that side's length, cyclic.
An alternative is a whole structured matrix A that is added to the terms' sum as long as it pays.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.spec import LayerSpec
from models.structured.base import StructuredLinear
from models.structured.mask import gaudi_mask, round_to_samples
from models.structured.trainable import TrainableLayer
from models.structures.base import check_divides


@final
class RelaxedLinear(TrainableLayer):
    """y = (sum_k (row mask_k * U_k) (column mask_k * V_k)^T + gate A) x + bias.

    Every mask is learnable; `alternative` is A, without a bias, and `alternative_size` what it
    costs in numbers as the rectangles hold them.
    """

    row_saliency: Tensor
    column_saliency: Tensor
    whole_saliency: Tensor
    alternative_saliency: Tensor
    lives: Tensor  # whether the alternative does

    def __init__(
        self,
        layer: LayerSpec,
        row_factors: Float[Tensor, "rows terms"],
        column_factors: Float[Tensor, "terms columns"],
        bias: Float[Tensor, " rows"] | None,
        *,
        group: int,
        alternative: StructuredLinear | None = None,
        alternative_size: int = 0,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.group = group
        terms = row_factors.shape[1]
        check_divides("group", group, terms=terms)
        self.groups = terms // group
        self.row_factors = nn.Parameter(row_factors.clone())
        self.column_factors = nn.Parameter(column_factors.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        full = row_factors.new_tensor([1.0, 0.0]).repeat(self.groups, 1)
        self.row_support = nn.Parameter(full.clone())
        self.column_support = nn.Parameter(full.clone())
        self.row_cell, self.column_cell = cell_size(layer.rows), cell_size(layer.columns)
        cells = (-(-layer.rows // self.row_cell), -(-layer.columns // self.column_cell))
        self.register_buffer("row_saliency", row_factors.new_zeros(self.groups, cells[0]))
        self.register_buffer("column_saliency", row_factors.new_zeros(self.groups, cells[1]))
        self.register_buffer("whole_saliency", row_factors.new_zeros(self.groups))
        self.row_mask = row_factors.new_ones(self.groups, layer.rows)
        self.column_mask = row_factors.new_ones(self.groups, layer.columns)
        self.alternative = alternative
        self.alternative_size = alternative_size
        self.gate = row_factors.new_ones(())
        if alternative is not None:
            self.register_buffer("alternative_saliency", row_factors.new_zeros(()))
            self.register_buffer("lives", torch.ones((), dtype=torch.bool))

    def forward(self, x: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch rows"]:
        """Multiply by the masked factors, as for a low-rank layer, and by what stands beside."""
        columns = self.column_mask.repeat_interleave(self.group, 0) * self.column_factors
        rows = self.row_mask.repeat_interleave(self.group, 0).T * self.row_factors
        y = F.linear(F.linear(x, columns), rows, self.bias)
        beside = self.beside
        return y if beside is None else y + self.gate.to(y.dtype) * beside.product(x)

    @property
    def beside(self) -> StructuredLinear | None:
        """The alternative, as long as it lives."""
        return self.alternative if self.alternative is not None and bool(self.lives) else None

    @property
    def beside_size(self) -> int:
        """What the alternative costs now, in numbers."""
        return 0 if self.beside is None else self.alternative_size

    def fan_ins(self) -> dict[str, float]:
        """All terms; all columns."""
        return {"row_factors": self.row_factors.shape[1], "column_factors": self.layer.columns}

    def dense_fan_in(self) -> int:
        """The columns."""
        return self.layer.columns

    def core_count(self) -> int:
        """Two."""
        return len(self.fan_ins())

    def rectangles(self) -> tuple[Int[Tensor, "groups 2"], Int[Tensor, "groups 2"]]:
        """Return (start, count) of every rectangle's rows and columns, rounded; dead ones 0."""
        return (
            round_support(self.row_support, self.layer.rows),
            round_support(self.column_support, self.layer.columns),
        )

    @torch.no_grad()
    def set_rectangles(
        self, rows: Int[Tensor, "groups 2"], columns: Int[Tensor, "groups 2"]
    ) -> None:
        """Set every rectangle from integer (start, count) pairs."""
        self.row_support.copy_(support_of(rows, self.layer.rows))
        self.column_support.copy_(support_of(columns, self.layer.columns))


@final
class Relaxation:
    """All relaxed layers of a network, whose masks are made in one batch for each length."""

    def __init__(self, network: nn.Module, layers: Mapping[str, RelaxedLinear]) -> None:
        self.layers = dict(layers)
        self.sigma = float("inf")
        network.register_forward_pre_hook(lambda _module, _inputs: self._refresh_exactly())

    def _refresh_exactly(self) -> None:
        """Compute the masks in float32, whatever the products are computed in."""
        kind = next(iter(self.layers.values())).row_support.device.type
        with torch.autocast(kind, enabled=False):
            self.refresh_masks()

    def mask_gradients(self) -> list[Tensor]:
        """Return the gradients at the masks and gates, as far as there are any."""
        masks = [
            mask
            for layer in self.layers.values()
            for mask in (layer.row_mask, layer.column_mask, layer.gate)
        ]
        return [mask.grad for mask in masks if mask.grad is not None]

    def refresh_masks(self) -> None:
        """Compute every mask from its support; in training, differentiably."""
        for layer in self.layers.values():
            if layer.beside is not None:
                layer.gate = _watched(torch.ones_like(layer.alternative_saliency))
        sides = [
            (layer, side, support, length)
            for layer in self.layers.values()
            for side, support, length in (
                ("row_mask", layer.row_support, layer.layer.rows),
                ("column_mask", layer.column_support, layer.layer.columns),
            )
        ]
        for length in sorted({length for *_, length in sides}):
            chosen = [side for side in sides if side[3] == length]
            supports = torch.cat([support for _, _, support, _ in chosen])
            masks = self._masks(supports, length)
            for (layer, side, _, _), mask in zip(
                chosen, masks.split([layer.groups for layer, *_ in chosen]), strict=True
            ):
                setattr(layer, side, _watched(mask))

    def _masks(self, supports: Tensor, length: int) -> Tensor:
        if self.sigma == float("inf"):
            return inside(round_support(supports, length), length).float()
        rounded = round_to_samples(supports, length)
        return gaudi_mask(rounded[:, 0], rounded[:, 1], length, self.sigma * length)

    def decisions(self) -> list[Tensor]:
        """Return all that says what the structure is by now: supports, and which alternatives live.

        On several processes they must be the same, and equal gradients are not equal to a bit
        everywhere.
        """
        layers = self.layers.values()
        supports = [one for layer in layers for one in (layer.row_support, layer.column_support)]
        return [*supports, *(one.lives for one in layers if one.alternative is not None)]

    def structural_group(self, factor: float) -> dict[str, Any]:
        """Group the supports for the optimiser, as published: no momentum, no decay."""
        supports = [p for m in self.layers.values() for p in (m.row_support, m.column_support)]
        return {"params": supports, "factor": factor, "betas": (0.0, 0.999), "weight_decay": 0.0}


def cell_size(length: int) -> int:
    """Segments leave in cells of 16, or of an eighth of a short side."""
    return max(1, min(16, length // 8))


def round_support(support: Float[Tensor, "groups 2"], length: int) -> Int[Tensor, "groups 2"]:
    """Return (start, count) of a (width, location) support."""
    width, location = (support.detach() * length).round().long().unbind(-1)
    return torch.stack([location % length, width.clamp(0, length)], -1)


def support_of(rectangle: Int[Tensor, "groups 2"], length: int) -> Float[Tensor, "groups 2"]:
    """Return the (width, location) support of a (start, count) side."""
    return rectangle.flip(-1).float() / length


def inside(rectangle: Int[Tensor, "groups 2"], length: int) -> Bool[Tensor, "groups length"]:
    """Return which positions of a cyclic side lie within (start, count)."""
    start, count = rectangle.unbind(-1)
    offset = (torch.arange(length, device=start.device) - start[:, None]) % length
    return offset < count[:, None]


def _watched(mask: Tensor) -> Tensor:
    """Keep the mask's gradient, from which saliency is taken."""
    if mask.requires_grad:
        mask.retain_grad()
        return mask
    return mask.clone().requires_grad_() if torch.is_grad_enabled() else mask


def cell_sums(values: Float[Tensor, "groups length"], size: int) -> Float[Tensor, "groups cells"]:
    """Sum each run of `size` positions; the last may be shorter."""
    padded = F.pad(values, (0, -values.shape[-1] % size))
    return reduce(padded, "groups (cells size) -> groups cells", "sum", size=size)
