"""Fitting a layer's numbers to a matrix by gradients, where no closed form exists."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from models.structured.base import StructuredLinear
from models.structured.output_error import regularised


def descend(
    layer: StructuredLinear,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    steps: int,
    finer: Mapping[str, float] = MappingProxyType({}),
) -> float:
    """Lower the layer's relative (output) error by at most `steps` steps of L-BFGS, in float64.

    Starts from the layer's numbers and never leaves it worse; returns the relative squared error.
    Every tensor is counted in its own root mean square at the start, or the share of that which
    `finer` names: else how far a step goes, and when it is too small to go on, would hang on the
    scale of the matrix.
    """
    trial = copy.deepcopy(layer).double()
    trial.bias = None
    remainder = _Remainder(trial, weight, second_moment)
    starts = dict(trial.named_parameters(prefix="layer"))
    shares_of = {f"layer.{name}": share for name, share in finer.items()}
    units = {name: shares_of.get(name, 1.0) * _unit(start) for name, start in starts.items()}
    shares = {name: (starts[name].detach() / units[name]).requires_grad_() for name in starts}

    def numbers() -> dict[str, Tensor]:
        return {name: units[name] * share for name, share in shares.items()}

    def error() -> Tensor:
        found: Tensor = functional_call(remainder, numbers(), ())
        return found

    def closure() -> float:
        optimiser.zero_grad()
        loss = error()
        loss.backward()
        return float(loss.detach())

    with torch.no_grad():
        before = float(error())
    if not sum(share.numel() for share in shares.values()):
        return before
    optimiser = torch.optim.LBFGS(
        list(shares.values()),
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
            for own, found in zip(layer_parameters(layer), numbers().values(), strict=True):
                own.copy_(found)
    return min(before, after)


@final
class _Remainder(nn.Module):
    """What a layer leaves of a matrix: the squared (output) error, relative to the matrix's own."""

    def __init__(
        self, layer: StructuredLinear, weight: Tensor, second_moment: Tensor | None
    ) -> None:
        super().__init__()
        self.layer = layer
        target = weight.detach().double()
        self.lower = None
        if second_moment is not None:
            self.lower = torch.linalg.cholesky(regularised(second_moment))
        self.whitened = target if self.lower is None else target @ self.lower
        energy = self.whitened.square().sum()
        self.energy = energy if energy > 0 else torch.ones_like(energy)

    def forward(self) -> Tensor:
        # What L, row by row of L^T: cheaper than the product with a dense What.
        lower, layer = self.lower, self.layer
        found = layer.to_dense() if lower is None else layer.product(lower.T).T
        return (self.whitened - found).square().sum() / self.energy


def _unit(start: Tensor) -> float:
    """The root mean square, or 1 of no numbers or zeros."""
    size = float(start.detach().square().mean().sqrt()) if start.numel() else 0.0
    return size or 1.0


def best_of_restarts(
    layer: StructuredLinear,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    start: Callable[[int], None],
    *,
    restarts: int,
    steps: int,
    finer: Mapping[str, float] = MappingProxyType({}),
) -> float:
    """Keep the best of several descents, each from what `start(attempt)` writes into the layer."""
    best, kept = float("inf"), layer.state_dict()
    for attempt in range(restarts):
        start(attempt)
        error = descend(layer, weight, second_moment, steps=steps, finer=finer)
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
