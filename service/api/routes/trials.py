"""Trials of one search: their states, curves and found structures."""

from typing import Annotated, final

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from models.drawing import draw
from search.plan import TrialKind, TrialState
from service import jobs
from service.api.conditional import IfNoneMatch, tagged
from service.api.dependencies import Reading
from service.api.documented import NOT_FOUND, NOT_MODIFIED
from service.api.paging import Cursor, Limit, next_link, once_each
from service.api.schemas import CurvesAnswer, StructureAnswer, TrialAnswer, TrialList
from service.db.session import clock

router = APIRouter(prefix="/searches/{search_id}/trials", tags=["trials"], responses=NOT_FOUND)

Number = Annotated[int, Path(ge=0, le=1_000_000)]
Cost = Annotated[int, Field(ge=0, le=2**63 - 1)]


@final
class Svg(Response):
    """A drawing."""

    media_type = "image/svg+xml"


@final
class TrialQuery(BaseModel):
    """Which trials to list; an unknown filter is refused, not passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: TrialState | None = None
    kind: TrialKind | None = None
    worker: str | None = None
    loss_from: FiniteFloat | None = None
    loss_to: FiniteFloat | None = None
    cost_from: Cost | None = None
    cost_to: Cost | None = None
    sort: jobs.TrialSort = "number"
    cursor: Cursor = None
    limit: Limit = 100


@router.get("", dependencies=[Depends(once_each)])
def list_trials(
    search_id: str, request: Request, session: Reading, wanted: Annotated[TrialQuery, Query()]
) -> TrialList:
    """List the trials of a search; what has nothing to be sorted by comes last."""
    page = jobs.page_of_trials(
        session,
        search_id,
        jobs.TrialFilter(**wanted.model_dump(exclude={"sort", "cursor", "limit"})),
        now=clock(session),
        cursor=wanted.cursor,
        limit=wanted.limit,
        sort=wanted.sort,
    )
    items = tuple(TrialAnswer.model_validate(view) for view in page.trials)
    return TrialList(items=items, next=next_link(request, page.cursor))


@router.get("/{number}", response_model=TrialAnswer, responses=NOT_MODIFIED)
def get_trial(
    search_id: str, number: Number, session: Reading, if_none_match: IfNoneMatch = ""
) -> Response:
    """Tell how one trial is doing; 304 if nothing has changed but the time."""
    view = jobs.get_trial(session, search_id, number, now=clock(session))
    answer = TrialAnswer.model_validate(view)
    lasting = answer.model_dump_json(exclude={"seconds"})
    return tagged(answer.model_dump_json(), if_none_match, lasting=lasting)


@router.get("/{number}/metrics")
def metrics(
    search_id: str,
    number: Number,
    session: Reading,
    max_points: Annotated[int, Query(ge=2, le=10_000)] = 1000,
) -> CurvesAnswer:
    """Give the curves of a trial, thinned with the extremes kept."""
    return CurvesAnswer(curves=jobs.points(session, search_id, number, max_points=max_points))


@router.get("/{number}/structure", response_model=StructureAnswer, responses=NOT_MODIFIED)
def structure(
    search_id: str, number: Number, session: Reading, if_none_match: IfNoneMatch = ""
) -> Response:
    """Give the network that a trial found, layer by layer."""
    network = jobs.network(session, search_id, number)
    search = jobs.get_search(session, search_id, now=clock(session))
    costs = jobs.layer_costs(session, search_id, number)
    answer = StructureAnswer.of(network, costs, search.eligible)
    return tagged(answer.model_dump_json(), if_none_match)


@router.get("/{number}/structure.svg", response_class=Svg, responses=NOT_MODIFIED)
def drawing(
    search_id: str, number: Number, session: Reading, if_none_match: IfNoneMatch = ""
) -> Response:
    """Draw the network that a trial found."""
    network = jobs.network(session, search_id, number)
    search = jobs.get_search(session, search_id, now=clock(session))
    svg = draw(network, search.eligible)
    return tagged(svg, if_none_match, media_type="image/svg+xml")
