"""Many products of one shape at once, their outputs side by side."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def writes_in_place(x: Tensor, *, exported: bool = False) -> bool:
    """Whether results may be written into prepared memory, which saves a copy.

    Not where torch records gradients, chooses the dtype, transforms the function (`vmap`) or traces
    a graph; but for the exporter, to which some products do not matter, as `exported` says.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return False
    if torch.compiler.is_compiling():
        return exported and torch.compiler.is_exporting()
    return not torch._C._are_functorch_transforms_active()  # noqa: SLF001 - none is public


def padded(x: Float[Tensor, "*batch columns"], columns: int) -> Float[Tensor, "*batch padded"]:
    """The inputs with zeros after them, up to so many columns."""
    missing = columns - x.shape[-1]
    return functional.pad(x, (0, missing)) if missing else x


def side_by_side(
    inputs: Float[Tensor, "count tokens width"],
    blocks: Float[Tensor, "count height width"],
    bias: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "tokens count*height"]:
    """Block i times inputs i, its outputs in columns i * height to (i + 1) * height, plus b.

    b may lack the last of these columns, which are padding.
    """
    count, height, _ = blocks.shape
    tokens = inputs.shape[1]
    matrices = blocks.transpose(1, 2)
    added = None if bias is None else padded(bias, count * height).view(count, 1, height)
    if not writes_in_place(inputs):
        found = inputs @ matrices if added is None else torch.baddbmm(added, inputs, matrices)
        return found.transpose(0, 1).reshape(tokens, count * height)
    y = inputs.new_empty(tokens, count, height)
    # BLAS writes with any distance between rows: the outputs land where they belong.
    if added is None:
        torch.bmm(inputs, matrices, out=y.transpose(0, 1))
    else:
        torch.baddbmm(added, inputs, matrices, out=y.transpose(0, 1))
    return y.view(tokens, count * height)
