"""What a layer admits: each refusal names the argument, what it is and what it may be."""

from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from models.structured.changes import state
from models.structures.convolution import ConvolutionSpec

SKEW = 1e-2  # of its largest number: half precision rounds a second moment by less

# The second moments that were found to be symmetric, and in which state: each curve of a layer asks
# for the same.
_SYMMETRIC = WeakIdKeyDictionary()


def check_target(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> None:
    """Raise ValueError where these cannot be a matrix and the second moment of its inputs."""
    check_tensor("weight", weight)
    if weight.dim() != 2 or not weight.numel() or not weight.is_floating_point():
        raise ValueError(
            f"weight is {shape_in_words(weight)} of {weight.dtype}, "
            "but a projection admits matrices of real numbers in floating point, 1 x 1 and larger"
        )
    check_finite("weight", weight)
    if second_moment is None:
        return
    check_tensor("second_moment", second_moment)
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
    if seen:
        _SYMMETRIC[second_moment] = now


def check_bias(bias: Tensor | None, *, rows: int) -> None:
    """Raise ValueError where this cannot be the bias of so many outputs, if there is one."""
    if bias is None:
        return
    check_tensor("bias", bias)
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
