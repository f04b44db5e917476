"""Where a matrix wants its low-rank rectangles: those that explain most for what they cost.

Greedy: the rectangle that explains most for each number stored, cut off where more rows or columns
are not worth theirs, is taken off the matrix, again and again. So the choices for all budgets are
beginnings of one sequence; `gblr_fit` fits what is chosen.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.checks import check_target
from models.structured.rectangles import rectangle_indices
from models.structures import Gblr, Rectangle
from models.structures.base import check_range

SMALLEST = 8  # rectangles are first looked for at 1, 1/2, 1/4 and this part of a side
# A row or a column is worth its numbers where each explains this share of what the rectangle's do:
# the last rectangles that a budget has room for explain less than the first.
WORTH = 0.5
ROUNDS = 4  # of choosing rows for the columns and columns for the rows
STEPS, MORE = 2, 8  # of subspace iteration, and directions beside the wanted


def choose_rectangles(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    *,
    rank: int,
    budgets: Sequence[int],
    generator: torch.Generator,
) -> list[Gblr | None]:
    """For each number of MACs the rectangles of at most this rank; None where there is no room.

    The last one has as many ranks as are left for it, and those at one place are one. Of C only the
    diagonal is seen: columns count by the size of their inputs.
    """
    check_target(weight, second_moment)
    check_range("rank", rank, low=1, where="a rectangle")
    for budget in budgets:
        check_range("a budget of budgets", budget, low=0, where="a choice")
    matrix = weight.detach().double().clone()
    if second_moment is not None:
        matrix *= second_moment.double().diagonal().clamp(min=0).sqrt()
    most, spent, found = max(budgets, default=0), 0, []
    for one in _rectangles(matrix, rank, generator):
        found.append(one)
        spent += one.size
        if spent >= most:
            break
    return [_beginning(found, budget) for budget in budgets]


def _beginning(rectangles: Sequence[Rectangle], budget: int) -> Gblr | None:
    """As many as fit, the last one perhaps of lower rank, equal places merged."""
    merged: dict[tuple[int, int, int, int], Rectangle] = {}
    left = budget
    for one in rectangles:
        place = (one.row_start, one.row_count, one.column_start, one.column_count)
        before = merged.get(place)
        has, size = (before.rank, before.size) if before else (0, 0)
        most = min(has + one.rank, one.row_count, one.column_count)
        if has == most:
            continue  # it holds all that is there
        ways = (one.model_copy(update={"rank": rank}) for rank in range(most, has, -1))
        grown = next((way for way in ways if way.size - size <= left), None)
        if grown is not None:
            merged[place] = grown
            left -= grown.size - size
        if grown is None or grown.rank < most:
            break
    return Gblr(rectangles=tuple(merged.values())) if merged else None


@dataclass(frozen=True, slots=True)
class Part:
    """The best approximation of what is left on one rectangle, and the energy that it explains."""

    rectangle: Rectangle
    row_factor: Float[Tensor, "height rank"]  # orthonormal columns
    column_factor: Float[Tensor, "rank width"]
    explained: float

    @property
    def worth(self) -> float:
        """What it explains by each number stored."""
        return self.explained / self.rectangle.size

    def gain(self, price: float) -> float:
        """What it explains beyond a price of each number."""
        return self.explained - price * self.rectangle.size


def _rectangles(rest: Tensor, rank: int, generator: torch.Generator) -> Iterator[Rectangle]:
    """Yield the rectangle of most worth and take it off, until nothing is left."""
    least = torch.finfo(torch.float32).eps * float(rest.square().sum())
    places = list(_places(rest.shape[0], rest.shape[1], rank))
    queue = [(-_part(rest, one, generator).worth, i) for i, one in enumerate(places)]
    heapq.heapify(queue)
    while queue:
        _, number = heapq.heappop(queue)
        part = _part(rest, places[number], generator)
        if queue and part.worth < -queue[0][0]:  # others have taken some since it was looked at
            heapq.heappush(queue, (-part.worth, number))
            continue
        heapq.heappush(queue, (-part.worth, number))
        part = _refined(rest, part, rank, generator)
        if part.explained <= least:
            return
        rows, columns = _inside(rest, part.rectangle)
        rest[rows[:, None], columns] -= part.row_factor @ part.column_factor
        yield part.rectangle


def _places(rows: int, columns: int, rank: int) -> Iterator[Rectangle]:
    """Yield rectangles of both sides, halved ever more often."""
    for (top, tall), (first, wide) in product(_parts(rows, rank), _parts(columns, rank)):
        place = {"row_start": top, "row_count": tall, "column_start": first, "column_count": wide}
        yield Rectangle(**place, rank=min(rank, tall, wide))


def _parts(length: int, rank: int) -> Iterator[tuple[int, int]]:
    """Yield start and length of the whole, of its halves, of their halves, .. down to a rank."""
    parts = 1
    while parts <= SMALLEST and (parts == 1 or length // parts >= rank):
        for index in range(parts):
            start = index * length // parts
            yield start, (index + 1) * length // parts - start
        parts *= 2


def _inside(rest: Tensor, place: Rectangle) -> tuple[Tensor, Tensor]:
    return rectangle_indices(place, rows=rest.shape[0], columns=rest.shape[1])


def _part(rest: Tensor, place: Rectangle, generator: torch.Generator) -> Part:
    """Approximate what is left on a rectangle, by subspace iteration."""
    rows, columns = _inside(rest, place)
    target = rest[rows[:, None], columns]
    if place.is_tile:
        energy = float(target.square().sum())
        return Part(place, torch.eye(len(target)).to(target), target, energy)
    width = min(place.rank + MORE, *target.shape)
    seen = target @ torch.randn(len(columns), width, generator=generator, dtype=target.dtype)
    for _ in range(STEPS):
        seen = target @ (target.T @ torch.linalg.qr(seen).Q)
    basis = torch.linalg.qr(seen).Q
    left, singular, right = torch.linalg.svd(basis.T @ target, full_matrices=False)
    kept = slice(place.rank)
    column_factor = singular[kept, None] * right[kept]
    return Part(place, basis @ left[:, kept], column_factor, float(singular[kept].square().sum()))


def _refined(rest: Tensor, part: Part, rank: int, generator: torch.Generator) -> Part:
    """Choose the rows that its columns explain well or the columns for its rows, and again."""
    price = WORTH * part.worth
    for _ in range(ROUNDS):
        parts = (_part(rest, one, generator) for one in _resized(rest, part, price, rank))
        better = max(parts, key=lambda one: one.gain(price))
        if better.gain(price) <= part.gain(price):
            break
        part = better
    return part


def _resized(rest: Tensor, part: Part, price: float, rank: int) -> Iterator[Rectangle]:
    """Yield the same columns on better rows, and the same rows on better columns."""
    place = part.rectangle
    rows, columns = _inside(rest, place)
    # On other rows the row space stays, and each row is explained by numbers of its own.
    space = torch.linalg.qr(part.column_factor.T).Q[:, : place.rank]
    row_gains = (rest[:, columns] @ space).square().sum(1) - price * place.rank
    column_gains = (part.row_factor.T @ rest[rows]).square().sum(0) - price * place.rank
    for gains, side in ((row_gains, "row"), (column_gains, "column")):
        start, count = best_arc(gains)
        found = place.model_copy(update={f"{side}_start": start, f"{side}_count": count})
        most = min(rank, found.row_count, found.column_count)
        yield found.model_copy(update={"rank": most})


def best_arc(gains: Float[Tensor, " length"]) -> tuple[int, int]:
    """Start and length of the cyclic stretch with the largest sum, of one entry at least."""
    sums = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    low, start = sums.cummin(0)
    high, begin = sums.cummax(0)
    rise, fall = sums - low, high - sums
    end, stop = int(rise.argmax()), int(fall.argmax())
    if float(rise[end]) <= 0:
        return int(gains.argmax()), 1
    if float(sums[-1] + fall[stop]) > float(rise[end]):  # all but the worst stretch
        return stop % len(gains), len(gains) - (stop - int(begin[stop]))
    return int(start[end]), end - int(start[end])
