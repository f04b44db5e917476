"""Learned operators and their generators, found by damped Gauss-Newton steps.

W = sum over u < T of A^u G H^T B^u. Its derivative by G[i, k] is the sum of A^u e_i h_k^T B^u, and
by A[i, j], with P_t the first t terms, the sum over s < T of A^s e_i (row j of P_(T-1-s) B^(s+1)).
B and H follow from the transpose, in which they take the places of A^T and G.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.weighted_shifts import applied, krylov

# Multiplications of one step and of all: a 64 x 64 matrix of 768 numbers takes 2.4e9 for a step.
ONE, ALL, MOST = 3e9, 1.5e11, 300
FIRST, EASED, TIGHTENED, TRIES = 1e-3, 0.2, 4.0, 12  # of the damping, a share of the curvature
FLOOR = 1e-9  # of the largest curvature: for numbers that do not matter
PROGRESS, LOOK_BACK = 0.98, 15  # stop where so many steps leave more than this share of the error


def affordable_settling(entries: int, numbers: int) -> int:
    """How many steps such a matrix is worth: none where a single one takes too long."""
    work = entries * numbers**2
    return 0 if work > ONE else min(MOST, int(ALL // work))


def settled(
    target: Float[Tensor, "rows columns"], tensors: Sequence[Tensor], steps: int, enough: float
) -> tuple[list[Tensor], float]:
    """Operators of rows and columns and generators of both, from these, and their relative error.

    The error is squared and never larger than at first; `enough` of it is as good as none. By
    Levenberg's and Marquardt's method: each step solves for all numbers, damped until it helps.
    """
    size = target.norm()
    target, tensors = target / size, _scaled(tensors, size**-0.5)
    damping = FIRST
    errors = [float((_matrix(*tensors) - target).square().sum())]
    for _ in range(steps):
        is_stuck = len(errors) > LOOK_BACK and errors[-1] > PROGRESS * errors[-LOOK_BACK]
        if errors[-1] < enough or is_stuck:
            break
        matrix, slopes = with_derivatives(*tensors)
        rest = (matrix - target).flatten()
        curvature, slope = slopes @ slopes.T, slopes @ rest
        ridge = curvature.diagonal() + FLOOR * curvature.diagonal().max()
        for _ in range(TRIES):
            lower, info = torch.linalg.cholesky_ex(curvature + torch.diag(damping * ridge))
            step = torch.cholesky_solve(slope[:, None], lower)[:, 0]
            moved = _moved(tensors, step)
            error = float((_matrix(*moved) - target).square().sum())
            if info == 0 and error < errors[-1]:
                tensors, damping = moved, damping * EASED
                errors.append(error)
                break
            damping *= TIGHTENED
        else:
            break
    return _scaled(tensors, size**0.5), errors[-1]


def with_derivatives(
    row: Float[Tensor, "bands rows"],
    column: Float[Tensor, "bands columns"],
    left: Float[Tensor, "rank rows"],
    right: Float[Tensor, "rank columns"],
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "numbers entries"]]:
    """The matrix, and what each number of the four tensors, one after another, moves in it."""
    terms = max(row.shape[1], column.shape[1])
    powers = _powers(row, terms), _powers(column, terms)
    matrix, by_row, by_left = _by_rows(powers, left, right, len(row))
    _, by_column, by_right = _by_rows(powers[::-1], right, left, len(row))
    turned = [found.transpose(1, 2) for found in (by_column, by_right)]
    slopes = torch.cat([by_row, turned[0], by_left, turned[1]])
    return matrix, slopes.flatten(1)


def _by_rows(
    powers: tuple[Tensor, ...], left: Tensor, right: Tensor, bands: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix, and its derivatives by the rows' operator and by their generator."""
    of_rows, of_columns = powers
    terms, rows = len(of_rows) - 1, of_rows.shape[1]
    moved = of_columns @ right.T
    shares = (of_rows[:-1] @ left.T) @ moved[:-1].mT
    sums = torch.cat([torch.zeros_like(shares[:1]), shares.cumsum(0)])
    by_entry = of_rows[:-1].permute(2, 1, 0).contiguous()  # (i, row, power)
    inner = (sums[:-1].flip(0) @ of_columns[1:].mT).transpose(0, 1).contiguous()
    places = [torch.arange(rows, device=left.device).roll(1 - band) for band in range(bands)]
    operator = torch.cat([torch.bmm(by_entry, inner[place]) for place in places])
    flat = by_entry.view(-1, terms)
    generator = [(flat @ moved[:-1, :, k]).view(rows, rows, -1) for k in range(len(right))]
    return sums[-1], operator, torch.cat(generator)


def _powers(operator: Tensor, last: int) -> Float[Tensor, "powers size size"]:
    identity = torch.eye(operator.shape[1], dtype=operator.dtype, device=operator.device)
    found, power = identity[None], applied(operator, identity)
    while len(found) <= last:
        found = torch.cat([found, power @ found])
        power = power @ power
    return found[: last + 1]


def _matrix(row: Tensor, column: Tensor, left: Tensor, right: Tensor) -> Tensor:
    terms = max(row.shape[1], column.shape[1])
    return krylov(row, left.T, terms) @ krylov(column, right.T, terms).T


def _scaled(tensors: Sequence[Tensor], scale: Tensor) -> list[Tensor]:
    row, column, left, right = tensors
    return [row, column, scale * left, scale * right]


def _moved(tensors: Sequence[Tensor], step: Float[Tensor, " numbers"]) -> list[Tensor]:
    pieces = step.split([tensor.numel() for tensor in tensors])
    return [tensor - piece.view_as(tensor) for tensor, piece in zip(tensors, pieces, strict=True)]
