"""What the network's answers would miss without a piece of a relaxed layer.

Two measures of the same thing. By curvature: tr(G D C D^T), the second-order movement of the
answers when the piece D leaves, from the reference's statistics and the present factors (as for
K-FAC, Martens & Grosse, ICML 2015, arXiv 1503.05671). By gradient: a running mean of the squared
first-order change of the training loss, (g z)^2 for a gate z = 1 on the piece.
"""

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from search.profile import LayerProfile
from search.relaxation import RelaxedLinear, cell_sums, inside

LARGEST = 1e30  # what has no finite saliency could never leave, and the cost would never fall


@torch.no_grad()
def observe_gradient(layer: RelaxedLinear, *, keep: float) -> None:
    """Average the squared first-order loss of removing each cell and each whole group."""
    assert layer.row_mask.grad is not None
    assert layer.column_mask.grad is not None
    rows = layer.row_mask.grad * layer.row_mask
    columns = layer.column_mask.grad * layer.column_mask
    layer.row_saliency.lerp_(cell_sums(rows, layer.row_cell).square(), 1 - keep)
    layer.column_saliency.lerp_(cell_sums(columns, layer.column_cell).square(), 1 - keep)
    layer.whole_saliency.lerp_(rows.sum(-1).square(), 1 - keep)
    if layer.beside is not None:
        assert layer.gate.grad is not None
        layer.alternative_saliency.lerp_(layer.gate.grad.square(), 1 - keep)
    _keep_finite(layer)


@torch.no_grad()
def measure_curvature(layer: RelaxedLinear, p: LayerProfile) -> None:
    """Set each cell's and each whole group's saliency from G, C and the present factors."""
    rows, columns = layer.rectangles()
    shape = {"groups": layer.groups, "terms": layer.group}
    all_u = rearrange(layer.row_factors, "rows (groups terms) -> groups terms rows", **shape)
    all_v = rearrange(layer.column_factors, "(groups terms) rest -> groups terms rest", **shape)
    u = all_u * inside(rows, layer.layer.rows)[:, None]
    v = all_v * inside(columns, layer.layer.columns)[:, None]
    row_parts = _cell_products(u, p.curvature, layer.row_cell)
    column_parts = _cell_products(v, p.second_moment, layer.column_cell)
    row_whole, column_whole = _products(u, p.curvature), _products(v, p.second_moment)
    tokens = p.layer.tokens
    layer.row_saliency.copy_(tokens * _trace(row_parts, column_whole[:, None]))
    layer.column_saliency.copy_(tokens * _trace(column_parts, row_whole[:, None]))
    layer.whole_saliency.copy_(tokens * _trace(row_whole, column_whole))
    if layer.beside is not None:
        matrix = layer.beside.to_dense()
        outputs = matrix @ p.second_moment.to(matrix.dtype)
        moved = outputs if p.curvature is None else p.curvature.to(matrix.dtype) @ outputs
        layer.alternative_saliency.copy_(tokens * (moved * matrix).sum().clamp(min=0))
    _keep_finite(layer)


def _keep_finite(layer: RelaxedLinear) -> None:
    saliencies = [layer.row_saliency, layer.column_saliency, layer.whole_saliency]
    if layer.alternative is not None:
        saliencies.append(layer.alternative_saliency)
    for saliency in saliencies:
        saliency.nan_to_num_(nan=LARGEST).clamp_(max=LARGEST)


def _trace(left: Tensor, right: Tensor) -> Tensor:
    return reduce(left * right, "... one other -> ...", "sum").clamp(min=0)


def _products(
    factors: Float[Tensor, "groups terms length"], moment: Tensor | None
) -> Float[Tensor, "groups terms terms"]:
    """Return F M F^T of every group; M is the identity where there is none."""
    weighed = factors if moment is None else factors @ moment.to(factors)
    return weighed @ factors.mT


def _cell_products(
    factors: Float[Tensor, "groups terms length"], moment: Tensor | None, size: int
) -> Float[Tensor, "groups cells terms terms"]:
    """Return the same for every cell of the length alone."""
    length = factors.shape[-1]
    padding = -length % size
    cells = rearrange(
        F.pad(factors, (0, padding)),
        "groups terms (cells size) -> groups terms cells size",
        size=size,
    )
    square = (
        torch.eye(length, dtype=factors.dtype, device=factors.device)
        if moment is None
        else moment.to(factors)
    )
    square = F.pad(square, (0, padding, 0, padding))
    count = (length + padding) // size
    blocks = rearrange(square, "(a s) (b t) -> a b s t", a=count, b=count)
    each = torch.arange(count, device=factors.device)
    diagonal = blocks[each, each]
    weighed = einsum(cells, diagonal, "groups terms cells s, cells s t -> groups terms cells t")
    return einsum(
        weighed, cells, "groups one cells t, groups other cells t -> groups cells one other"
    )
