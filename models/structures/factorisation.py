"""How a side of a matrix is split into several indices, padded up where it does not divide."""

from collections.abc import Sequence
from functools import lru_cache
from math import log, prod

from models.structures.base import check_range

FARTHEST = 4096  # divisors are looked for this far from where they should lie, and no farther
NEGLIGIBLE = 1e-9  # exponents below are zero


@lru_cache(maxsize=4096)
def split(number: int, exponents: tuple[float, ...]) -> tuple[int, ...]:
    """Factors near number**exponent, whose product is at least `number` (the exponents sum to 1).

    A divisor within a factor of two is preferred; otherwise the nearest size, padded up.
    """
    factors, rest, left = [], number, sum(exponents)
    for exponent in exponents:
        if exponent <= NEGLIGIBLE:
            factor = 1
        elif left - exponent <= NEGLIGIBLE:
            factor = rest
        else:
            factor = _nearest(rest, rest ** (exponent / left))
        left -= exponent
        others = -(-rest // factor)
        factors.append(-(-rest // others))  # no more than the others leave to do
        rest = others
    return tuple(factors)


def balanced_modes(number: int, parts: int) -> tuple[int, ...]:
    """Split into `parts` factors of about the same size; ValueError below one of either."""
    check_range("number", number, low=1, where="a split into modes")
    check_range("parts", parts, low=1, where="a split into modes")
    return split(number, (1 / parts,) * parts)


def check_modes(name: str, modes: Sequence[int], *, side: int, where: str) -> None:
    """Admit modes whose product reaches the side without an idle step of the first beyond 1."""
    first = next((index for index, mode in enumerate(modes) if mode > 1), len(modes))
    high = side + prod(modes[first + 1 :]) - 1
    check_range(product_in_words(name, modes), prod(modes), low=side, high=high, where=where)


def product_in_words(name: str, modes: Sequence[int]) -> str:
    """`the product 8x12 of row_modes`, for messages."""
    return f"the product {modes_in_words(modes)} of {name}"


def modes_in_words(modes: Sequence[int]) -> str:
    """`8x12x8`."""
    return "x".join(map(str, modes))


def _nearest(number: int, target: float) -> int:
    centre = max(1, round(target))
    low, high = max(1, centre // 2, centre - FARTHEST), min(number, 2 * centre, centre + FARTHEST)
    divisors = [size for size in range(low, high + 1) if number % size == 0]
    return min(divisors, key=lambda size: abs(log(size / target)), default=centre)
