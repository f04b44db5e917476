"""Whether a tensor still holds the numbers that were seen in it."""

from torch import Tensor

# How often torch changed it in place, where it lies, and the sum of its numbers.
State = tuple[int, int, float]


def state(tensor: Tensor) -> State:
    """What differs once a tensor has been changed, but by chance; no inference tensor has one.

    Torch does not count what is written by `.data` or by NumPy, but that moves the sum.
    """
    return tensor._version, tensor.data_ptr(), tensor.detach().sum().item()  # noqa: SLF001
