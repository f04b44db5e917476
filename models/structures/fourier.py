"""What fast Fourier transforms of real numbers cost, and which lengths are fast.

A complex transform of length L has (L / 2) log2 L butterflies of 6 multiply-accumulates each: 4 for
a + w b, and 2 for a - w b = 2 a - (a + w b). A real one has half as many.
"""


def is_smooth(length: int) -> bool:
    """Whether a length has no prime factor above 5."""
    for prime in (2, 3, 5):
        while length % prime == 0:
            length //= prime
    return length == 1


def smooth_length(least: int) -> int:
    """The smallest length from `least` up without a prime factor above 5."""
    best = 1 << (least - 1).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            twos = threes << max(0, (-(-least // threes) - 1).bit_length())
            best = min(best, twos)
            threes *= 3
        fives *= 5
    return best


def wrapped_length(size: int, *, sign: int) -> int:
    """The transform for a correlation that wraps around after `size` numbers, times a sign.

    A plain wrap of a smooth size needs no more than the size; any other is folded from twice that.
    """
    return size if sign == 1 and is_smooth(size) else smooth_length(2 * size)


def transform_macs(length: int) -> int:
    """Of one real transform, forwards or backwards: 3/2 L log2 L, with log2 L rounded up."""
    return 3 * length * (length - 1).bit_length() // 2


def spectrum_macs(length: int) -> int:
    """Of the product of two spectra: 4 for each of L // 2 + 1 complex numbers."""
    return 4 * (length // 2 + 1)
