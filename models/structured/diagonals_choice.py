"""Which diagonals and free entries a matrix needs most, and what every number of them leaves.

A position's energy is W[i, j]^2 C[j, j]: what the output loses without it where inputs are
uncorrelated. Diagonals are taken by their mean energy, the free entries by their own.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.structured.checks import check_target
from models.structured.diagonals import batches, padded_gram
from models.structured.error_curve import ErrorCurve
from models.structured.output_error import outputs, regularised
from models.structures import Diagonals
from models.structures.base import check_number, check_range, matrix_in_words

# A curve with free entries sorts all entries once for each size: so many sizes, evenly in their
# logarithm. Given C, it ends where its Cholesky factors would take more multiplications than this.
SIZES = 48
WORK = 1e9


def choose(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    diagonals: int,
    entries: int = 0,
) -> Diagonals:
    """The structure with so many diagonals, and with so many free entries besides."""
    check_target(weight, second_moment)
    rows, columns = weight.shape
    where = matrix_in_words(rows=rows, columns=columns)
    check_range("diagonals", diagonals, low=0, high=rows + columns - 1, where=where)
    check_range("entries", entries, low=0, high=rows * columns, where=where)
    energy = energies(weight, second_moment)
    chosen = diagonal_ranks(energy) < diagonals
    entries = min(entries, int((~chosen).sum()))
    return _structure(chosen, _largest(energy, ~chosen, entries))


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    rest: float = 0.0,
) -> ErrorCurve:
    """Nested sizes of ever more diagonals, with `rest` free entries for each of their numbers.

    Exact: the energy outside or, given C, what the least-squares solution of each row leaves.
    """
    check_target(weight, second_moment)
    check_number("rest", rest, where="a curve")
    energy = energies(weight, second_moment)
    rank = diagonal_ranks(energy)
    counts, entered = _entered(energy, rank, rest)
    widths = _widths(entered, len(counts))
    sizes = widths.sum(0)
    matrix = weight.detach().double()
    if second_moment is None:
        total = energy.sum()
        taken = energy.new_zeros(len(counts)).index_add(0, entered.flatten(), energy.flatten())
    else:
        affordable = int((widths.double().pow(3).sum(0) / 3 <= WORK).sum())
        sizes = sizes[: max(1, affordable)]
        moment = regularised(second_moment)
        wanted = outputs(weight, second_moment)
        total = (wanted * matrix).sum()
        taken = _explained(wanted, moment, entered, len(sizes))
    left = (total - taken.cumsum(0)).clamp(min=0)

    def structure(index: int) -> Diagonals:
        chosen = rank < counts[index]
        return _structure(chosen, (entered <= index) & ~chosen)

    return ErrorCurve(
        macs=sizes,
        parameters=sizes,
        errors=left / total if total > 0 else left,
        member=structure,
    )


def energies(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """W[i, j]^2 C[j, j] in float64."""
    energy = weight.detach().double().square()
    return energy if second_moment is None else energy * second_moment.diagonal().double()


def diagonal_ranks(energy: Float[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
    """For every position, how many diagonals have more mean energy than its own."""
    rows, columns = energy.shape
    device = energy.device
    diagonal = torch.arange(columns, device=device) - torch.arange(rows, device=device)[:, None]
    diagonal = diagonal + rows - 1
    total = energy.new_zeros(rows + columns - 1).index_add(0, diagonal.flatten(), energy.flatten())
    order = (total / torch.bincount(diagonal.flatten())).argsort(descending=True, stable=True)
    return order.argsort()[diagonal]


def _entered(
    energy: Float[Tensor, "rows columns"], rank: Int[Tensor, "rows columns"], rest: float
) -> tuple[Int[Tensor, " sizes"], Int[Tensor, "rows columns"]]:
    """How many diagonals each size has, and the first size that has each position.

    The last size has all of them.
    """
    most = int(rank.max()) + 1
    if rest == 0:
        return torch.arange(1, most + 1, device=rank.device), rank
    steps = torch.linspace(0, 1, SIZES, dtype=torch.float64, device=rank.device)
    counts = (most**steps).round().long().unique()
    order = energy.flatten().argsort(descending=True, stable=True)
    rank_in_order = rank.flatten()[order]
    found = torch.full_like(order, len(counts) - 1)
    for index in range(len(counts) - 1, -1, -1):
        inside = rank_in_order < counts[index]
        free = int(rest * int(inside.sum()))
        found[inside | ((~inside).cumsum(0) <= free)] = index
    return counts, torch.empty_like(found).scatter(0, order, found).view_as(rank)


def _widths(entered: Int[Tensor, "rows columns"], sizes: int) -> Int[Tensor, "rows sizes"]:
    """How many positions each row has in each size."""
    rows = len(entered)
    pairs = torch.arange(rows, device=entered.device)[:, None] * sizes + entered
    return torch.bincount(pairs.flatten(), minlength=rows * sizes).view(rows, sizes).cumsum(1)


def _explained(
    wanted: Float[Tensor, "rows columns"],
    moment: Float[Tensor, "columns columns"],
    entered: Int[Tensor, "rows columns"],
    sizes: int,
) -> Float[Tensor, " sizes"]:
    """The output energy that each size explains more than the one before.

    `wanted` is W C. With a row's positions J in the order in which they enter, C[J, J] = L L^T and
    z = L^-1 (W C)[J], the first k of them explain the sum of the first k z^2.
    """
    taken = wanted.new_zeros(sizes)
    order = entered.argsort(dim=1, stable=True)
    counts = (entered < sizes).sum(1)
    for rows in batches(counts):
        longest = int(counts[rows].max())
        real = torch.arange(longest, device=wanted.device) < counts[rows, None]
        columns_of = order[rows, :longest]
        root = torch.linalg.cholesky(padded_gram(moment, columns_of, real))
        right = torch.where(real, wanted[rows].gather(1, columns_of), 0)
        solved = torch.linalg.solve_triangular(root, right[..., None], upper=False)[..., 0]
        when = entered[rows].gather(1, columns_of)
        taken.index_add_(0, when[real], solved[real].square())
    return taken


def _largest(
    energy: Float[Tensor, "rows columns"], allowed: Bool[Tensor, "rows columns"], number: int
) -> Bool[Tensor, "rows columns"]:
    order = torch.where(allowed, energy, -1).flatten().argsort(descending=True, stable=True)
    found = torch.zeros_like(allowed).flatten()
    found[order[:number]] = True
    return found.view_as(allowed)


def _structure(
    chosen: Bool[Tensor, "rows columns"], single: Bool[Tensor, "rows columns"]
) -> Diagonals:
    row, column = chosen.nonzero(as_tuple=True)
    offsets = (column - row).unique().tolist()
    entries = [(row, column) for row, column in single.nonzero().tolist()]
    return Diagonals(offsets=tuple(offsets), entries=tuple(entries))
