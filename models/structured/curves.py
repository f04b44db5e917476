"""Cost and error of the sizes of one kind of structure on one matrix, by closed form or by fits."""

from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured import (
    block_diagonal,
    block_low_rank,
    block_sparse,
    btt,
    diagonals_choice,
    einsum,
    low_rank,
    svdp,
    two_cores_curve,
)
from models.structured.build import project
from models.structured.checks import check_generator, check_target
from models.structured.error_curve import ErrorCurve
from models.structured.output_error import output_energy
from models.structured.rectangle_choice import choose_rectangles
from models.structured.sums_choice import choose_sum
from models.structures import Einsum, Gblr, Rectangle, Structure
from models.structures.sizes import (
    CHOSEN_KINDS,
    SHARES,
    Kind,
    budgets,
    check_kind,
    cost,
    grid,
    knob,
    kronecker,
    saves,
)


def error_curve(  # noqa: PLR0911, PLR0912 - one for each kind
    kind: Kind,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    shares: Sequence[float] = SHARES,
    generator: torch.Generator | None = None,
) -> ErrorCurve:
    """All sizes of a kind that save something over dense, the cheapest first; there may be none.

    Where a closed form exists, all of them. Without C these errors are the ones that `project`
    reaches, or bounds from above where two cores are padded; with C some are exact for the
    regularised C (low rank, SVDP, block diagonal, diagonals) and others bounds, so that kinds are
    not to be ranked by them: `fitted_error` tells of a chosen size what `project` leaves.

    Elsewhere the ones that hold most within these shares of a dense matrix's cost, each projected
    by a copy of the generator, which stays as it is: so `project` gets the same error. Tiles, ranks
    and rectangles stand where the matrix has most to explain.
    ValueError for what is no kind, and for shares that are none.
    """
    check_kind(kind)
    check_target(weight, second_moment)
    draws = _draws(generator)
    rows, columns = weight.shape
    sides = {"rows": rows, "columns": columns}
    within = budgets(**sides, shares=shares)
    # Where the matrix chooses the places of rectangles, none that are drawn tell what there is.
    if kind not in CHOSEN_KINDS and not grid(kind, **sides, shares=(1.0,)):
        return _none()
    members: Iterable[tuple[Structure, float]]
    match kind:
        case "low rank":
            return _saving(kind, low_rank.error_curve(weight, second_moment), **sides)
        case "SVDP":
            return _saving(kind, svdp.error_curve(weight, second_moment), **sides)
        case "block diagonal":
            return _saving(kind, block_diagonal.error_curve(weight, second_moment), **sides)
        case "diagonals":
            return _saving(kind, diagonals_choice.error_curve(weight, second_moment), **sides)
        case (
            "block sparse, tiles of 8"
            | "block sparse, tiles of 16"
            | "block sparse, tiles of 32"
            | "block sparse, tiles of 64"
        ):
            curve = block_sparse.error_curve(weight, second_moment, tile=knob(kind))
            return _saving(kind, curve, **sides)
        case "block low rank, 4 x 4":
            blocks = {"row_blocks": knob(kind), "column_blocks": knob(kind)}
            curve = block_low_rank.error_curve(weight, second_moment, **blocks)
            return _saving(kind, curve, **sides)
        case "BTT, 4 x 4" | "BTT, 8 x 8":
            blocks = {"input_blocks": knob(kind), "output_blocks": knob(kind)}
            return _saving(kind, btt.error_curve(weight, second_moment, **blocks), **sides)
        case "Kronecker sum":
            smallest = kronecker(1, **sides)
            curve = two_cores_curve.error_curve(weight, second_moment, smallest)
            return _saving(kind, curve, **sides)
        case "einsum, BTT point":
            curve = einsum.error_curve(weight, second_moment, structure=Einsum.at("BTT"))
            return _saving(kind, curve, **sides)
        case "GBLR, rank 64" | "GBLR, rank 32" | "GBLR, rank 8":
            members = _rectangles(weight, second_moment, knob(kind), within, draws)
        case "low rank + block diagonal" | "low rank + tiles of 64" | "low rank + tiles of 16":
            members = (
                (found, fitted_error(weight, found, second_moment, generator=draws))
                for budget in within
                if (found := choose_sum(kind, weight, second_moment, budget, draws)) is not None
            )
        case (
            "Monarch, rank 1"
            | "BLAST, 4 x 4"
            | "BLAST, 16 x 16"
            | "tensor train"
            | "STTP"
            | "CP"
            | "butterfly"
            | "butterfly gadget"
            | "group and shuffle"
            | "circulant"
            | "Toeplitz-like"
            | "low displacement rank"
        ):
            members = (
                (one, fitted_error(weight, one, second_moment, generator=draws))
                for one in grid(kind, **sides, shares=shares)
            )
        case _:
            assert_never(kind)
    return _listed(kind, members, **sides)


def fitted_error(
    weight: Float[Tensor, "rows columns"],
    structure: Structure,
    second_moment: Float[Tensor, "columns columns"] | None = None,
    *,
    generator: torch.Generator | None = None,
) -> float:
    """The relative squared (output) error that `project` leaves, with a copy of the generator.

    By these, members of different kinds are ranked.
    """
    generator = _draws(generator)
    with torch.no_grad():
        layer = project(
            weight, structure, second_moment=second_moment, generator=generator.clone_state()
        )
        target = weight.detach().double()
        moment = None if second_moment is None else second_moment.double()
        whole = output_energy(target, moment)
        left = output_energy(target - layer.to_dense().double(), moment)
    return float(left / whole) if whole > 0 else 0.0


def _rectangles(
    weight: Tensor,
    second_moment: Tensor | None,
    rank: int,
    within: Sequence[int],
    generator: torch.Generator,
) -> Iterator[tuple[Gblr, float]]:
    """Yield what was chosen within every budget or, where that is better, low rank as it is."""
    rows, columns = weight.shape
    fits: dict[Gblr, float] = {}  # of some budgets the choice is the same

    def fitted(one: Gblr) -> float:
        if one not in fits:
            fits[one] = fitted_error(weight, one, second_moment, generator=generator)
        return fits[one]

    low_ranks = low_rank.error_curve(weight, second_moment).errors
    chosen = choose_rectangles(
        weight, second_moment, rank=rank, budgets=within, generator=generator.clone_state()
    )
    for budget, found in zip(within, chosen, strict=True):
        if found is None:
            continue
        error = fitted(found)
        whole = min(budget // (rows + columns), rows, columns)
        if not whole or error <= float(low_ranks[whole - 1]):
            yield found, error
        else:
            place = {"row_start": 0, "row_count": rows, "column_start": 0, "column_count": columns}
            plain = Gblr(rectangles=(Rectangle(**place, rank=whole),))
            yield plain, fitted(plain)


def _listed(
    kind: Kind, members: Iterable[tuple[Structure, float]], *, rows: int, columns: int
) -> ErrorCurve:
    """The curve of fitted members in the order of their cost, the best of each cost."""
    found: dict[int, tuple[Structure, float]] = {}
    for one, error in members:
        taken = cost(kind, one, rows=rows, columns=columns)
        if taken not in found or error < found[taken][1]:
            found[taken] = (one, error)
    sizes = [found[each][0] for each in sorted(found)]
    if not sizes:
        return _none()
    return ErrorCurve(
        macs=torch.tensor([one.mac_count(rows=rows, columns=columns) for one in sizes]),
        parameters=torch.tensor([one.parameter_count(rows=rows, columns=columns) for one in sizes]),
        errors=torch.tensor([found[each][1] for each in sorted(found)], dtype=torch.float64),
        member=sizes.__getitem__,
    )


def _saving(kind: Kind, curve: ErrorCurve, *, rows: int, columns: int) -> ErrorCurve:
    """Only what costs less than dense, in the order of the cost."""
    costs = curve.macs if saves(kind) == "macs" else curve.parameters
    kept = costs.argsort(stable=True)
    kept = kept[costs[kept] < rows * columns]
    return ErrorCurve(
        macs=curve.macs[kept],
        parameters=curve.parameters[kept],
        errors=curve.errors[kept],
        member=lambda index: curve.member(int(kept[index])),
    )


def _draws(generator: torch.Generator | None) -> torch.Generator:
    check_generator(generator, optional=True)
    return torch.Generator().manual_seed(0) if generator is None else generator


def _none() -> ErrorCurve:
    nothing: list[Structure] = []
    empty = torch.zeros(0, dtype=torch.long)
    return ErrorCurve(
        macs=empty, parameters=empty, errors=empty.double(), member=nothing.__getitem__
    )
