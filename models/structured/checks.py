"""What a layer admits: each refusal names the argument, what it is and what it may be."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from models.structured.changes import state
from models.structures.convolution import ConvolutionSpec

INDEFINITE = "second_moment is indefinite, but E[x x^T] of finite inputs never is"
SKEW = 1e-2  # of its largest number: half precision rounds a second moment by less

# The second moments that were found to be symmetric, and in which state: each curve of a layer asks
# for the same.
_SYMMETRIC = WeakIdKeyDictionary()


def check_target(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    name: str = "weight",
) -> None:
    """Raise ValueError where these cannot be a matrix and the second moment of its inputs."""
    check_tensor(name, weight)
    if weight.dim() != 2 or not weight.numel() or not weight.is_floating_point():
        raise ValueError(
            f"{name} is {shape_in_words(weight)} of {weight.dtype}, "
            "but a projection admits matrices of real numbers in floating point, 1 x 1 and larger"
        )
    check_finite(name, weight)
    if second_moment is None:
        return
    check_tensor("second_moment", second_moment)
    check_real("second_moment", second_moment)
    rows, columns = weight.shape
    if second_moment.shape != (columns, columns):
        raise ValueError(
            f"second_moment is {shape_in_words(second_moment)}, "
            f"but a {rows} x {columns} matrix admits {columns} x {columns}"
        )
    check_symmetric(second_moment)


def check_tensor(name: str, value: object) -> None:
    """Raise TypeError for an array, a list, a layer or anything else that is no tensor."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise TypeError(f"{name} is a {kind}, but this admits a torch.Tensor")


def check_real(name: str, tensor: Tensor) -> None:
    """Raise ValueError for complex numbers, whose imaginary parts would be lost."""
    if tensor.is_complex():
        raise ValueError(f"{name} is of {tensor.dtype}, but this admits real numbers")


def check_generator(generator: object, *, optional: bool = False) -> None:
    """Raise TypeError for what draws no random numbers; None only where it is optional."""
    if isinstance(generator, torch.Generator) or (optional and generator is None):
        return
    kind = type(generator).__name__
    raise TypeError(f"generator is a {kind}, but this admits a torch.Generator")


def check_numbers(*, bias: object, dtype: object) -> None:
    """Raise TypeError where these do not say whether there is a bias, and of which numbers."""
    if not isinstance(bias, bool):
        raise TypeError(f"bias is {_said(bias)}, but a new layer admits True and False")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is {_said(dtype)}, but a layer admits real floating-point dtypes")


def _said(value: object) -> str:
    """A value for messages: of a tensor the shape, which is shorter than its numbers."""
    return f"a tensor of {shape_in_words(value)}" if isinstance(value, Tensor) else repr(value)


def check_module(name: str, value: object) -> None:
    """Raise TypeError for what is no network and no layer."""
    if not isinstance(value, nn.Module):
        kind = type(value).__name__
        raise TypeError(f"{name} is a {kind}, but this admits a torch.nn.Module")


def check_symmetric(second_moment: Float[Tensor, "columns columns"]) -> None:
    """Raise ValueError where this is no second moment, but for what half precision rounds."""
    seen = not second_moment.is_inference()  # whose changes cannot be seen
    now = state(second_moment) if seen else None
    if seen and _SYMMETRIC.get(second_moment) == now:
        return
    skew = (second_moment - second_moment.T).abs().max()
    check_finite("second_moment", skew)  # no number anywhere makes it none
    if skew > SKEW * second_moment.abs().max():
        raise ValueError("second_moment is not symmetric, but E[x x^T] is")
    if second_moment.diagonal().min() < -SKEW * second_moment.abs().max():
        raise ValueError(INDEFINITE)
    if seen:
        _SYMMETRIC[second_moment] = now


def check_bias(bias: Tensor | None, *, rows: int) -> None:
    """Raise ValueError where this cannot be the bias of so many outputs, if there is one."""
    if bias is None:
        return
    check_tensor("bias", bias)
    check_real("bias", bias)
    if bias.shape != (rows,):
        raise ValueError(
            f"bias is {shape_in_words(bias)}, but a layer of {rows} outputs admits {rows}"
        )
    check_finite("bias", bias)


def check_groups(second_moment: Tensor | None, *, groups: int) -> None:
    """Raise ValueError unless there is one second moment for each group, or none at all."""
    if second_moment is not None and (second_moment.dim() != 3 or len(second_moment) != groups):
        raise ValueError(
            f"second_moment is {shape_in_words(second_moment)}, "
            f"but a convolution of {groups} groups admits {groups} x columns x columns"
        )


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError where a tensor holds infinities or what is no number."""
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds numbers that are not finite")


def check_width(x: Tensor, *, columns: int) -> None:
    """Raise ValueError where inputs have another number of entries than a layer has columns."""
    if x.size(-1) != columns:
        raise ValueError(
            f"x is {shape_in_words(x)}, but this layer admits {columns} as its last size"
        )


def check_images(x: Tensor, spec: ConvolutionSpec) -> None:
    """Raise ValueError where these are no images of a convolution's channels."""
    if x.dim() != 4 or x.size(1) != spec.in_channels:
        raise ValueError(
            f"x is {shape_in_words(x)}, "
            f"but this convolution admits images x {spec.in_channels} x height x width"
        )


def shape_in_words(tensor: Tensor) -> str:
    """`4 x 6`, for messages."""
    return " x ".join(map(str, tensor.shape)) or "a single number"
