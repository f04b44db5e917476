"""Whether the compiler's graph of a layer is the layer."""

import warnings

import torch
from torch import Tensor, nn


def assert_compiled_alike(
    layer: nn.Module, x: Tensor, *, rtol: float | None = None, atol: float | None = None
) -> None:
    """One graph, forward and backward, as traced."""
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The compiler's own use of deprecated parts of torch.
        actual = compiled(x)
    torch.testing.assert_close(actual, layer(x), rtol=rtol, atol=atol)
    parameters = list(layer.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), parameters),
        torch.autograd.grad(layer(x).square().sum(), parameters),
        rtol=rtol,
        atol=atol,
    )
