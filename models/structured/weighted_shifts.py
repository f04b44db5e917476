"""Weighted shifts: operators of one band below the diagonal, or of three, which wrap around."""

import torch
from jaxtyping import Float
from torch import Tensor


def applied(
    operator: Float[Tensor, "bands size"], matrix: Float[Tensor, "size columns"]
) -> Float[Tensor, "size columns"]:
    """A M: each row takes from the row before and, if tridiagonal, from itself and the next."""
    found = operator[0, :, None] * matrix.roll(1, 0)
    if len(operator) > 1:
        found = found + operator[1, :, None] * matrix + operator[2, :, None] * matrix.roll(-1, 0)
    return found


def krylov(
    operator: Float[Tensor, "bands size"], start: Float[Tensor, "size rank"], terms: int
) -> Float[Tensor, "size powers"]:
    """G, A G, A^2 G, ... side by side: each power of two doubles what is there."""
    power = applied(operator, torch.eye(len(start), dtype=start.dtype, device=start.device))
    found, count = start, 1
    while True:
        found = torch.cat([found, power @ found], dim=1)
        count *= 2
        if count >= terms:
            return found[:, : terms * start.shape[1]]
        power = power @ power


def shifted_sum(
    row: Float[Tensor, " rows"],
    column: Float[Tensor, " columns"],
    first: Float[Tensor, "rows columns"],
    terms: int,
) -> Float[Tensor, "rows columns"]:
    """The sum of A^u M B^u over u below `terms`; a power of a weighted shift is another.

    Follows the binary digits of the number of terms: doubled, S + A^t S B^t; and one more term,
    M + A S B. Each is one pass over the matrix.
    """
    found, row_weights, column_weights, count = first, row, column, 1
    for digit in bin(terms)[3:]:
        moved = found.roll((count, count), (0, 1))
        found = found + row_weights[:, None] * moved * column_weights
        row_weights = row_weights * row_weights.roll(count)
        column_weights = column_weights * column_weights.roll(count)
        count *= 2
        if digit == "1":
            found = first + row[:, None] * found.roll((1, 1), (0, 1)) * column
            row_weights, column_weights = row * row_weights.roll(1), column * column_weights.roll(1)
            count += 1
    return found
