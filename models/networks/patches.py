"""Images as sequences of square patches."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def patches(
    images: Float[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "batch tokens pixels"]:
    """Cut images into patches of `size` by `size` pixels, line after line."""
    return rearrange(
        images,
        "batch channels (down dy) (across dx) -> batch (down across) (channels dy dx)",
        dy=size,
        dx=size,
    )
