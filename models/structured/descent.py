"""Fitting a layer's numbers to a matrix by gradients, where no closed form exists."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.base import StructuredLinear
from models.structured.output_error import regularised


def descend(
    layer: StructuredLinear,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    steps: int,
) -> float:
    """Lower the layer's relative (output) error by at most `steps` steps of L-BFGS, in float64.

    Starts from the layer's numbers and never leaves it worse; returns the relative squared error.
    """
    lower = None if second_moment is None else torch.linalg.cholesky(regularised(second_moment))
    target = weight.detach().double()
    whitened = target if lower is None else target @ lower
    energy = whitened.square().sum()
    if energy == 0:
        energy = torch.ones_like(energy)
    trial = copy.deepcopy(layer).double()
    trial.bias = None
    parameters = list(trial.parameters())

    def error() -> Tensor:
        # What L, row by row of L^T: cheaper than the product with a dense What.
        rest = whitened - (trial.to_dense() if lower is None else trial.product(lower.T).T)
        return rest.square().sum() / energy

    def closure() -> float:
        optimiser.zero_grad()
        loss = error()
        loss.backward()
        return float(loss.detach())

    with torch.no_grad():
        before = float(error())
    if not sum(parameter.numel() for parameter in parameters):
        return before
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        history_size=20,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )
    with torch.enable_grad():
        optimiser.step(closure)
    with torch.no_grad():
        after = float(error())
        if after < before:
            for own, found in zip(layer_parameters(layer), parameters, strict=True):
                own.copy_(found)
    return min(before, after)


def best_of_restarts(
    layer: StructuredLinear,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    start: Callable[[int], None],
    *,
    restarts: int,
    steps: int,
) -> float:
    """Keep the best of several descents, each from what `start(attempt)` writes into the layer."""
    best, kept = float("inf"), layer.state_dict()
    for attempt in range(restarts):
        start(attempt)
        error = descend(layer, weight, second_moment, steps=steps)
        if error < best:
            best, kept = error, copy.deepcopy(layer.state_dict())
    layer.load_state_dict(kept)
    return best


def affordable_steps(layer: StructuredLinear, *, most: int) -> int:
    """Fewer steps on a large matrix, of which each takes longer: 51 of 768 x 768, 20 at least."""
    return max(20, min(most, 30_000_000 // (layer.rows * layer.columns)))


def layer_parameters(layer: StructuredLinear) -> list[Tensor]:
    """The trainable tensors of a layer but its bias."""
    return [value for name, value in layer.named_parameters() if name != "bias"]
