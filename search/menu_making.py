"""Fitting what stands on the layers' menus, and measuring what each item spoils.

Notation: W a layer's matrix, D = W - What, C = E[x x^T] of its inputs, G the curvature of the
answers in its outputs. An item's error is tr(D C D^T) / tr(W C W^T); its harm tokens tr(G D C D^T),
the movement of the answers to second order, or without a curvature sensitivity times error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from models.checkpoint import write_text
from models.frozen import Spec
from models.structured.base import StructuredLinear
from models.structured.build import project
from models.structured.curves import error_curve
from models.structured.error_curve import ErrorCurve
from models.structured.low_rank import DAMPING, LowRankLinear
from models.structured.output_error import output_energy, regularised
from models.structures import Dense, LowRank, Structure
from models.structures.sizes import CLOSED_KINDS, GRID_KINDS, SHARES, Kind, budgets, largest_within
from search.menu import LayerMenu, Menu, MenuItem
from search.profile import LayerProfile, Profile
from search.progress import Progress, followed
from search.resolved import ResolvedSearch
from search.rules import MenuKind, smallest_member

SIZES = 48  # of a nested kind on a menu, but for low rank: its ranks are all there
ANCHORS = (0.07, 0.2, 0.5)  # shares of dense at which a nested kind is measured, not interpolated
NEGLIGIBLE = 1e-9  # an error of which no ratio can be told
NEAR = 1.5  # what has to be fitted size by size is tried within this factor of a budget


class Fit(Spec):
    """What was measured of one structure in one layer; `movement` needs a curvature."""

    structure: Structure
    error: float
    movement: float | None


Fits = dict[str, tuple[Fit, ...]]
_FITS: TypeAdapter[Fits] = TypeAdapter(Fits)


def make_menu(
    measured: Profile,
    resolved: ResolvedSearch,
    asked: Sequence[int],
    progress: Progress,
    *,
    kept: Path,
) -> Menu:
    """Make the menu of every layer; what `kept` has is not fitted again, what is new is added.

    Raises StoppedError between two layers.
    """
    known = _FITS.validate_json(kept.read_bytes()) if kept.exists() else {}
    with _side_by_side() as pool:
        made = [pool.submit(_layer_menu, p, resolved, asked, known) for p in measured.layers]
        menus, fits = [], dict(known)
        for future in followed(made, progress, "menu", unit="layer"):
            menu, found = future.result()
            menus.append(menu)
            fits |= found
    if len(fits) > len(known):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, _FITS.dump_json(fits).decode())
    return Menu(layers=tuple(menus))


@contextmanager
def _side_by_side() -> Iterator[ThreadPoolExecutor]:
    """Threads that compute one layer each, with one thread: so their sums have no other order."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def build_item(p: LayerProfile, item: MenuItem) -> StructuredLinear:
    """Return the layer of an item as its error and its harm were measured."""
    return _build(p, item.structure)


def near_shares(asked: Sequence[int], dense: int) -> tuple[float, ...]:
    """Return the shares at which kinds are fitted size by size: those of one list near a budget.

    They come from one list, so that searches with other budgets may find them done.
    """
    wanted = [budget / dense for budget in asked]
    near = [s for s in SHARES if any(share / NEAR <= s <= share * NEAR for share in wanted)]
    return tuple(near) or (min(SHARES, key=lambda share: abs(share - wanted[0])),)


def _layer_menu(
    p: LayerProfile, resolved: ResolvedSearch, asked: Sequence[int], known: Fits
) -> tuple[LayerMenu, Fits]:
    """Make the menu of one layer, and tell what had to be fitted for it."""
    rule, layer = resolved.rules.get(p.layer.name), p.layer
    kinds: Sequence[MenuKind] = ("dense", *resolved.structures)
    shares = near_shares(asked, resolved.dense_cost)
    if "low rank" not in kinds:  # nothing else is there at all sizes, down to the promised least
        shares = (0.0, *shares)
    if resolved.quantity == "latency":  # a share of the time is reached with fewer MACs
        most = NEAR * max(asked) / resolved.dense_cost
        shares = (0.0, *(share for share in SHARES if share <= most))
    if rule is not None:
        kinds, shares = rule.kinds(resolved.structures), (0.0, *SHARES)
    ruler = _Ruler(p)
    fits: Fits = {}

    def found(kind: Kind, share: float | None, make: Callable[[], Sequence[Fit]]) -> Sequence[Fit]:
        key = f"{layer.name}/{kind}/{'all' if share is None else share}"
        if key not in known:
            fits[key] = tuple(make())
        return fits[key] if key in fits else known[key]

    items: list[MenuItem] = []
    for kind in kinds:
        if kind == "dense":
            items.append(_item(kind, p, Fit(structure=Dense(), error=0.0, movement=0.0)))
        elif kind == "low rank":
            items += _ranks(p)
        elif kind in CLOSED_KINDS:
            nested = found(kind, None, partial(_nested, ruler, kind))
            items += [_item(kind, p, fit) for fit in nested]
        else:
            fitted = {
                fit.structure.model_dump_json(): fit
                for share in shares
                for fit in found(kind, share, partial(_within, ruler, kind, share))
            }
            items += [_item(kind, p, fit) for fit in fitted.values()]
    if resolved.quantity == "latency":
        items = [item.timed(layer, resolved) for item in items]
    return LayerMenu(layer=layer, items=tuple(items)), fits


def _item(kind: MenuKind, p: LayerProfile, fit: Fit) -> MenuItem:
    sides = {"rows": p.layer.rows, "columns": p.layer.columns}
    harm = p.sensitivity * fit.error if fit.movement is None else fit.movement
    return MenuItem(
        kind=kind,
        structure=fit.structure,
        macs=fit.structure.mac_count(**sides),
        parameters=fit.structure.parameter_count(**sides),
        error=fit.error,
        harm=harm,
    )


def _ranks(p: LayerProfile) -> list[MenuItem]:
    """List every rank below dense: one decomposition tells the errors and harms of all."""
    terms, (rows, columns) = p.answer_terms, p.weight.shape
    # The rows of L^T V are orthonormal, so that the errors of terms left out add up.
    energies = terms.row_factor.square().sum(0) * (
        (terms.column_factor @ regularised(p.second_moment)) * terms.column_factor
    ).sum(1)
    whole = energies.sum().clamp(min=torch.finfo(energies.dtype).tiny)
    left = torch.cat([energies.flip(0).cumsum(0).flip(0)[1:], energies.new_zeros(1)]) / whole
    harms = p.errors("answer" if p.curvature is not None else "output")[1:]
    most = (rows * columns - 1) // (rows + columns)
    return [
        MenuItem(
            kind="low rank",
            structure=LowRank(rank=rank),
            macs=rank * (rows + columns),
            parameters=rank * (rows + columns),
            error=error,
            harm=harm,
        )
        for rank, (error, harm) in enumerate(
            zip(left.tolist()[:most], harms[:most], strict=True), start=1
        )
    ]


def _nested(ruler: "_Ruler", kind: Kind) -> list[Fit]:
    """Thin the sizes of a nested kind; some are measured, the others follow from the curve.

    A curve may lie above what a projection reaches, and says nothing of the movement: how many
    times the curve either is changes slowly from size to size, and is interpolated in logarithms.
    """
    curve = error_curve(kind, ruler.p.weight, ruler.p.second_moment)
    if not len(curve.macs):
        return []
    dense = ruler.p.weight.numel()
    anchors = sorted({int((curve.macs - share * dense).abs().argmin()) for share in ANCHORS})
    measured = {index: ruler.measure(curve.structure(index)) for index in anchors}
    sizes = sorted({*_spread(curve, SIZES), *anchors})
    bounds = [float(curve.errors[index]) for index in sizes]
    errors = _in_proportion(curve, sizes, {i: fit.error for i, fit in measured.items()})
    moved: Sequence[float | None] = [None] * len(sizes)
    if ruler.curvature is not None:
        known = {i: fit.movement or 0.0 for i, fit in measured.items()}
        moved = _in_proportion(curve, sizes, known)
    return [
        measured.get(index)
        or Fit(structure=curve.structure(index), error=min(error, bound), movement=movement)
        for index, bound, error, movement in zip(sizes, bounds, errors, moved, strict=True)
    ]


def _in_proportion(
    curve: ErrorCurve, sizes: Sequence[int], known: Mapping[int, float]
) -> list[float]:
    """Interpolate the ratio of what is known at some sizes to the curve, and apply it to others."""
    told = {i: v for i, v in known.items() if v > 0 and float(curve.errors[i]) > NEGLIGIBLE}
    if not told:  # every member is exact
        return [float(curve.errors[index]) for index in sizes]
    costs = np.log(curve.macs.double().numpy())
    ratios = np.log([value / float(curve.errors[index]) for index, value in told.items()])
    factors = np.exp(np.interp(costs[list(sizes)], costs[list(told)], ratios))
    return [float(f * curve.errors[i]) for i, f in zip(sizes, factors, strict=True)]


def _within(ruler: "_Ruler", kind: Kind, share: float) -> list[Fit]:
    """Fit the largest member within a share of the dense cost; for 0 the smallest there is."""
    rows, columns = ruler.p.weight.shape
    sides = {"rows": rows, "columns": columns}
    if share == 0:
        found = [smallest_member(kind, **sides)]
    elif kind in GRID_KINDS:
        (budget,) = budgets(**sides, shares=[share])
        found = [largest_within(kind, **sides, budget=budget)]
    else:  # the matrix chooses the places
        curve = error_curve(kind, ruler.p.weight, ruler.p.second_moment, shares=[share])
        found = [curve.structure(index) for index in range(len(curve.macs))]
    return [ruler.measure(one) for one in found if one is not None]


def _spread(curve: ErrorCurve, count: int) -> list[int]:
    """Return so many indices whose costs lie in about equal ratios, both ends among them."""
    costs = curve.macs.double().log()
    wanted = torch.linspace(float(costs[0]), float(costs[-1]), count, dtype=torch.float64)
    nearest = (costs[None, :] - wanted[:, None]).abs().argmin(1)
    return sorted({0, len(costs) - 1, *nearest.tolist()})


def _build(p: LayerProfile, structure: Structure) -> StructuredLinear:
    if isinstance(structure, LowRank):
        return LowRankLinear.from_factors(
            p.answer_terms.row_factor[:, : structure.rank].to(p.weight.dtype),
            p.answer_terms.column_factor[: structure.rank].to(p.weight.dtype),
            bias=p.bias,
        )
    return project(p.weight, structure, bias=p.bias, second_moment=p.second_moment)


class _Ruler:
    """Measures structures in one layer."""

    def __init__(self, p: LayerProfile) -> None:
        self.p = p
        self.weight = p.weight.detach().double()
        self.whole = float(output_energy(self.weight, p.second_moment))
        self.curvature = None if p.curvature is None else regularised(p.curvature, DAMPING)

    @torch.no_grad()
    def measure(self, structure: Structure) -> Fit:
        """Project the layer onto the structure, and say what that spoils."""
        rest = self.weight - _build(self.p, structure).to_dense().double()
        weighted = rest @ self.p.second_moment
        error = float((weighted * rest).sum()) / self.whole if self.whole > 0 else 0.0
        movement = None
        if self.curvature is not None:
            moved = ((self.curvature @ weighted) * rest).sum()
            movement = self.p.layer.tokens * max(0.0, float(moved))
        return Fit(structure=structure, error=max(0.0, error), movement=movement)
