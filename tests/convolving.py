"""The oracle of every convolution: torch's own, with the dense weight."""

from torch import Tensor
from torch.nn import functional

from models.structured import SparseConv2d, StructuredConv2d


def dense_convolution(layer: StructuredConv2d | SparseConv2d, x: Tensor) -> Tensor:
    spec = layer.spec
    found: Tensor = functional.conv2d(
        x,
        layer.to_dense(),
        layer.bias,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
    )
    return found
