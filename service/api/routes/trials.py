"""Trials of one search: their states, curves and found structures."""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from models.drawing import draw
from search.plan import TrialKind, TrialState
from service import jobs
from service.api.dependencies import Reading
from service.api.paging import Cursor, Limit, next_link, page_from
from service.api.schemas import CurvesAnswer, StructureAnswer, TrialAnswer, TrialList
from service.db.session import clock

router = APIRouter(prefix="/searches/{search_id}/trials", tags=["trials"])

Number = Annotated[int, Path(ge=0, le=1_000_000)]
Sort = Literal["number", "-number", "validation_loss", "cost", "-cost"]
LAST = float("inf")
ORDERS: dict[Sort, Callable[[TrialAnswer], tuple[float, int]]] = {
    "number": lambda trial: (0, trial.number),
    "-number": lambda trial: (0, -trial.number),
    "validation_loss": lambda trial: (_or(trial.validation_loss, LAST), trial.number),
    "cost": lambda trial: (_or(trial.cost, LAST), trial.number),
    "-cost": lambda trial: (-_or(trial.cost, -LAST), trial.number),
}


@router.get("")
def list_trials(
    search_id: str,
    request: Request,
    session: Reading,
    state: TrialState | None = None,
    kind: TrialKind | None = None,
    sort: Sort = "number",
    cursor: Cursor = None,
    limit: Limit = 100,
) -> TrialList:
    """List the trials of a search; what has no loss or cost yet comes last."""
    trials = [
        TrialAnswer.model_validate(view)
        for view in jobs.list_trials(session, search_id, now=clock(session))
        if state in (None, view.state) and kind in (None, view.kind)
    ]
    trials.sort(key=ORDERS[sort])
    numbers = [trial.number for trial in trials]
    items, following = page_from(trials, keys=numbers, cursor=cursor, limit=limit)
    return TrialList(items=items, next=next_link(request, following))


@router.get("/{number}")
def get_trial(search_id: str, number: Number, session: Reading) -> TrialAnswer:
    """Tell how one trial is doing."""
    view = jobs.get_trial(session, search_id, number, now=clock(session))
    return TrialAnswer.model_validate(view)


@router.get("/{number}/metrics")
def metrics(
    search_id: str,
    number: Number,
    session: Reading,
    max_points: Annotated[int, Query(ge=2, le=10_000)] = 1000,
) -> CurvesAnswer:
    """Give the curves of a trial, thinned with the extremes kept."""
    return CurvesAnswer(curves=jobs.points(session, search_id, number, max_points=max_points))


@router.get("/{number}/structure")
def structure(search_id: str, number: Number, session: Reading) -> StructureAnswer:
    """Give the network that a trial found, layer by layer."""
    network = jobs.network(session, search_id, number)
    search = jobs.get_search(session, search_id, now=clock(session))
    costs = jobs.layer_costs(session, search_id, number)
    return StructureAnswer.of(network, costs, search.eligible)


@router.get("/{number}/structure.svg", response_class=Response)
def drawing(search_id: str, number: Number, session: Reading) -> Response:
    """Draw the network that a trial found."""
    network = jobs.network(session, search_id, number)
    search = jobs.get_search(session, search_id, now=clock(session))
    return Response(draw(network, search.eligible), media_type="image/svg+xml")


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
