"""Operators under which a matrix's displacement has a low rank, found from the matrix alone.

D = W - A W B, of rank 2 r at most: W = sum over u < T of A^u G H^T B^u has G H^T - A^T G H^T B^T.
P, Q  project onto what D's leading singular vectors leave of rows and columns: P D Q is all that
      is wrong with D, and its derivative by A[i, j] is -(P e_i) (e_j^T W B Q). No power of an
      operator takes part, and the products of all derivatives are entries of small matrices.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.weighted_shifts import applied

STEPS, TRIES = 60, 12  # of a search; of one step
FIRST, EASED, TIGHTENED = 1e-3, 0.2, 4.0  # of the damping, a share of the curvature
FLOOR = 1e-10  # of the largest curvature: for numbers that do not matter
PROGRESS, LOOK_BACK = 0.8, 8  # stop where so many steps leave more than this share
ROUNDING, PROMISING = 1e-20, 1e-14  # of the squared share of W that is outside of the rank
JITTERS = 0.2, 0.3, 0.1, 0.2  # of the weights of the shifts from which searches start
SWEEPS = 20  # of balancing rows and columns
ALL, USUAL = 1.5e11, 30  # multiplications of all searches; steps of one


def promising_starts(
    target: Float[Tensor, "rows columns"],
    *,
    bands: int,
    rank: int,
    most: int,
    generator: torch.Generator,
) -> Iterator[list[Tensor]]:
    """Yield operators and generators, of rows and columns in turn, that a member may be made of.

    By at most so many searches, of which one of 64 x 64 takes a quarter of a second.

    A search must know the rank, so all from half of this one on take turns; so do the matrix as it
    is and with rows and columns of even size, by which the form of the operators does not change.
    """
    rows, columns = target.shape
    turns = 1 if bands == 1 and rows == columns else 2  # of weighted shifts A^T is a multiple of I
    equations = [
        found
        for member in range(rank, (rank - 1) // 2, -1)
        if (found := turns * member) < min(rows, columns)
        and (rows - found) * (columns - found) >= bands * (rows + columns)
    ]
    if not equations:
        return
    searches = min(most, int(ALL // (USUAL * (bands * (rows + columns)) ** 3)))
    plain = torch.ones_like(target[:, 0]), torch.ones_like(target[0])
    frames = _even(target), plain
    for attempt in range(searches):
        jitter = JITTERS[attempt // (2 * len(equations)) % len(JITTERS)]
        row_size, column_size = frames[attempt // len(equations) % 2]
        scaled = row_size[:, None] * target * column_size
        row, column = (
            _disturbed(bands, side, jitter, generator).to(target) for side in (rows, columns)
        )
        row, column, left_over = searched(
            scaled / scaled.norm(), row, column, equations[attempt % len(equations)]
        )
        if left_over < PROMISING:
            row, column = _in_frame(row, row_size), _in_frame(column, column_size)
            source = _source(target, row, column)
            if source.isfinite().all():
                left, singular, right = torch.linalg.svd(source, full_matrices=False)
                scale = singular[:rank].sqrt()
                yield [row, column, (left[:, :rank] * scale).T, right[:rank] * scale[:, None]]


def searched(
    target: Float[Tensor, "rows columns"],
    row: Float[Tensor, "bands rows"],
    column: Float[Tensor, "bands columns"],
    rank: int,
) -> tuple[Tensor, Tensor, float]:
    """Operators from these, and the squared norm of D outside of its leading `rank` terms.

    By Levenberg's and Marquardt's method for what is left when D's best terms are taken away,
    which is the variable projection of Golub and Pereyra (1973).
    """
    displacement = _displacement(target, row, column)
    spaces = _leading(displacement, rank)
    errors, damping = [spaces[2]], FIRST
    for _ in range(STEPS):
        is_stuck = len(errors) > LOOK_BACK and errors[-1] > PROGRESS * errors[-LOOK_BACK]
        if errors[-1] < ROUNDING or is_stuck:
            break
        curvature, slope = _equations(target, row, column, displacement, spaces[:2])
        ridge = curvature.diagonal()
        floor = FLOOR * ridge.max()
        for _ in range(TRIES):
            lower, info = torch.linalg.cholesky_ex(curvature + torch.diag(damping * ridge + floor))
            step = torch.cholesky_solve(slope[:, None], lower)[:, 0]
            by_row, by_column = step.split([row.numel(), column.numel()])
            moved = row - by_row.view_as(row), column - by_column.view_as(column)
            if info == 0 and step.isfinite().all():
                changed = _displacement(target, *moved)
                found = _leading(changed, rank)
                if found[2] < errors[-1]:
                    (row, column), displacement, spaces = moved, changed, found
                    errors.append(found[2])
                    damping *= EASED
                    break
            damping *= TIGHTENED
        else:
            break
    return row, column, errors[-1]


def _equations(
    target: Tensor, row: Tensor, column: Tensor, displacement: Tensor, spaces: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The products of the derivatives of P D Q with each other, and with P D Q."""
    left, right = spaces
    by_row, by_column = applied(row, target), applied(column, target.T).T  # A W and W B
    outside = by_column - (by_column @ right) @ right.T, by_row - left @ (left.T @ by_row)
    rest = displacement - left @ (left.T @ displacement)
    rest = rest - (rest @ right) @ right.T
    i, j = _places(row)
    k, m = _places(column)
    of_rows = torch.eye(len(left)).to(left) - left @ left.T
    of_columns = torch.eye(len(right)).to(right) - right @ right.T
    rows = of_rows[i][:, i] * (outside[0] @ by_column.T)[j][:, j]
    columns = of_columns[k][:, k] * (by_row.T @ outside[1])[m][:, m]
    both = outside[1][i][:, m] * outside[0][j][:, k]
    curvature = torch.cat([torch.cat([rows, both], 1), torch.cat([both.T, columns], 1)])
    return curvature, -torch.cat([(rest @ by_column.T)[i, j], (rest.T @ by_row)[k, m]])


def _displacement(target: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return target - applied(column, applied(row, target).T).T


def _leading(displacement: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The leading singular vectors of both sides, and the energy of all others."""
    left, singular, right = torch.linalg.svd(displacement, full_matrices=False)
    return left[:, :rank], right[:rank].T, float(singular[rank:].square().sum())


def _places(operator: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and columns of an operator's numbers, band after band."""
    bands, size = operator.shape
    row = torch.arange(size)
    return row.repeat(bands), torch.cat([row.roll(1 - band) for band in range(bands)])


def _disturbed(bands: int, size: int, jitter: float, generator: torch.Generator) -> Tensor:
    """A cyclic shift, its weights and its neighbours' disturbed."""
    found = jitter * torch.randn(bands, size, generator=generator, dtype=torch.float64)
    found[0] += 1
    return found


def _even(target: Tensor) -> tuple[Tensor, Tensor]:
    """What to multiply rows and columns by, so that each is of norm 1."""
    tiny = torch.finfo(target.dtype).tiny ** 0.5
    row, column = torch.ones_like(target[:, 0]), torch.ones_like(target[0])
    for _ in range(SWEEPS):
        row = 1 / (target * column).norm(dim=1).clamp(min=tiny)
        column = 1 / (row[:, None] * target).norm(dim=0).clamp(min=tiny)
    return row, column


def _in_frame(operator: Tensor, size: Tensor) -> Tensor:
    """The operator of a matrix from that of the same with its rows multiplied by these."""
    shifted = torch.stack([size.roll(1 - band) for band in range(len(operator))])
    return operator * shifted / size


def _source(target: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """M, where W is the sum of A^u M B^u: in A's and B's eigenvectors, entry by entry."""
    up, over = (applied(one, torch.eye(one.shape[1]).to(one)) for one in (row, column))
    values, vectors = torch.linalg.eig(up)
    others, turned = torch.linalg.eig(over.T)
    inner = torch.linalg.solve_ex(vectors, target.to(vectors.dtype))[0] @ turned
    product = values[:, None] * others
    total = torch.ones_like(product)
    for _ in range(max(target.shape) - 1):
        total = 1 + product * total
    found: Tensor = torch.linalg.solve_ex(turned.T, (vectors @ (inner / total)).T)[0].T.real
    return found
