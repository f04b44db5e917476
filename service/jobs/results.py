"""What a search has found: networks, curves, the front, the comparison and the report."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import cast

from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from models.cost import Quantity
from models.spec import NetworkSpec
from search import pareto
from search.layer_costs import LayerCosts
from search.limits import exceeded
from search.plan import TrialKind
from search.profile_report import ProfileReport
from search.report import Report
from search.spec import SearchSpec
from service.db.tables import PointRow, SearchRow, TrialRow
from service.errors import NotYetThere, QueryRefused, TrialNotFound
from service.jobs.best import OBJECTIVE
from service.jobs.reading import search_row, trial_row, trial_views
from service.jobs.views import ComparedTrial, Curve, Front, FrontPoint


def dense_network(session: Session, search_id: str) -> NetworkSpec:
    """The network that the search started from."""
    return NetworkSpec.model_validate(search_row(session, search_id).network)


def network(session: Session, search_id: str, number: int) -> NetworkSpec:
    """The network that a trial found, or NotYetThere."""
    return _network(trial_row(session, search_id, number))


def layer_costs(session: Session, search_id: str, number: int) -> LayerCosts:
    """What the layers of a trial's network cost in the quantity of its search."""
    quantity = cast("Quantity", search_row(session, search_id).quantity)
    if quantity != "latency":
        return LayerCosts(quantity)
    times, dense = (trial_row(session, search_id, which).times for which in (number, 0))
    return LayerCosts(quantity, times, dense)


def report(session: Session, search_id: str) -> Report:
    """The table of what was measured on the exported files, or NotYetThere."""
    found = search_row(session, search_id).report
    if found is None:
        raise NotYetThere("the search has not been measured; its last trial makes the report")
    return Report.model_validate(found)


def profile(session: Session, search_id: str) -> ProfileReport:
    """What was known of the layers before anything was learned, or NotYetThere."""
    found = search_row(session, search_id).profile
    if found is None:
        raise NotYetThere("the search has no profile yet; its reference makes it")
    return ProfileReport.model_validate(found)


def points(
    session: Session, search_id: str, number: int, *, max_points: int = 1000
) -> dict[str, Curve]:
    """The curves of a trial, each thinned to about `max_points` with its extremes kept."""
    trial_id = trial_row(session, search_id, number).id
    return _curves(session, [trial_id], max_points)[trial_id]


def compare(
    session: Session, trial_ids: Sequence[str], *, now: datetime, max_points: int = 200
) -> tuple[ComparedTrial, ...]:
    """2 to 8 found networks side by side, in the order asked for."""
    if not 2 <= len(trial_ids) <= 8:
        raise QueryRefused(
            f"{len(trial_ids)} trials cannot be compared; choose 2 to 8 of them", field="trials"
        )
    found = select(TrialRow).where(TrialRow.id.in_(trial_ids)).options(undefer(TrialRow.network))
    there = {row.id: row for row in session.scalars(found)}
    for trial_id in trial_ids:
        if trial_id not in there:
            raise TrialNotFound(trial_id)
    rows = [there[trial_id] for trial_id in trial_ids]
    searches = {row.search_id for row in rows}
    columns = select(SearchRow.id, SearchRow.eligible).where(SearchRow.id.in_(searches))
    eligible = {search_id: tuple(names) for search_id, names in session.execute(columns)}
    curves = _curves(session, trial_ids, max_points)
    return tuple(
        ComparedTrial(view, _network(row), eligible[row.search_id], curves[row.id])
        for row, view in zip(rows, trial_views(session, rows, now), strict=True)
    )


def front(session: Session, search_id: str, *, metric_floor: float | None = None) -> Front:
    """Every network of a search between loss, cost and latency, the best trade-offs marked.

    Once the exported files have been measured it is their numbers that count.
    """
    search = search_row(session, search_id)
    table = None if search.report is None else Report.model_validate(search.report)
    found = _trained(session, search) if table is None else _measured(table)
    kept = [point for point in found if not point.exceeds]
    objectives = [(point.validation_loss, point.cost, point.latency_ratio or 0.0) for point in kept]
    leading = {kept[index].number for index in pareto.front(objectives)}
    items = tuple(replace(point, on_front=point.number in leading) for point in found)
    enough = [p for p in kept if metric_floor is not None and p.metric >= metric_floor]
    cheapest = min(enough, key=lambda point: (point.cost, -point.metric), default=None)
    return Front(
        items=items,
        reference_point=table.reference_point if table else None,
        hypervolume=table.hypervolume if table else None,
        cheapest=next((p for p in items if cheapest and p.number == cheapest.number), None),
    )


def _measured(table: Report) -> list[FrontPoint]:
    return [
        FrontPoint(
            number=row.number,
            name=row.name,
            kind=row.kind,
            budget_index=row.budget_index,
            validation_loss=row.validation_loss,
            metric=_metric(row.validation_loss, row.validation_accuracy),
            cost=row.cost,
            latency_ratio=row.latency_ratio,
            exceeds=row.exceeds,
            on_front=False,
        )
        for row in table.rows
    ]


def _trained(session: Session, search: SearchRow) -> list[FrontPoint]:
    limits = SearchSpec.model_validate(search.spec).limits
    rows = session.scalars(
        select(TrialRow)
        .where(TrialRow.search_id == search.id, TrialRow.state == "COMPLETE")
        .order_by(TrialRow.number)
    )
    return [
        FrontPoint(
            number=row.number,
            name=row.name,
            kind=cast("TrialKind", row.kind),
            budget_index=None if row.kind == "reference" else row.budget_index,
            validation_loss=loss,
            metric=_metric(loss, (row.metrics or {}).get("validation_accuracy")),
            cost=row.cost,
            latency_ratio=None,
            exceeds=() if row.kind == "reference" else exceeded(limits, row.metrics or {}),
            on_front=False,
        )
        for row in rows
        if row.cost is not None and (loss := (row.metrics or {}).get(OBJECTIVE)) is not None
    ]


def _metric(loss: float, accuracy: float | None) -> float:
    return -loss if accuracy is None else accuracy


def _network(row: TrialRow) -> NetworkSpec:
    if row.network is None:
        raise NotYetThere(f"trial {row.number} has found no network; it is {row.state}")
    return NetworkSpec.model_validate(row.network)


def _curves(
    session: Session, trial_ids: Sequence[str], max_points: int
) -> dict[str, dict[str, Curve]]:
    rows = session.execute(
        select(PointRow.trial_id, PointRow.name, PointRow.step, PointRow.value)
        .where(PointRow.trial_id.in_(trial_ids))
        .order_by(PointRow.trial_id, PointRow.name, PointRow.step)
    )
    found: dict[str, dict[str, Curve]] = {trial_id: {} for trial_id in trial_ids}
    for (trial_id, name), points in groupby(rows, key=itemgetter(0, 1)):
        found[trial_id][name] = thinned(
            tuple((step, value) for *_, step, value in points), max_points
        )
    return found


def thinned(curve: Curve, max_points: int) -> Curve:
    """Keep the first and last point, and the least and the greatest of each stretch between."""
    if len(curve) <= max_points:
        return curve
    stretches = max(1, (max_points - 2) // 2)
    inner = curve[1:-1]
    kept = {curve[0], curve[-1]}
    for index in range(stretches):
        part = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        known = [point for point in part if point[1] is not None]
        for choose in (min, max):
            kept |= {choose(known, key=lambda point: cast("float", point[1]))} if known else set()
    return tuple(sorted(kept, key=lambda point: point[0]))
