"""Found networks side by side."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from service import jobs
from service.api.dependencies import Reading
from service.api.documented import NOT_FOUND
from service.api.schemas import ComparisonAnswer
from service.db.session import clock
from service.errors import NotYetThere

router = APIRouter(tags=["compare"])

Listed = Annotated[str, Query(max_length=1000)]


@router.get("/compare", responses=NOT_FOUND)
def compare(session: Reading, trials: Listed = "", searches: Listed = "") -> ComparisonAnswer:
    """Compare 2 to 8 trials (`trials=<id>,<search>:<number>`), or the best of some searches."""
    ids = [one.replace(":", "-") for one in trials.split(",") if one]
    ids += [_best_of(session, one) for one in searches.split(",") if one]
    return ComparisonAnswer.of(jobs.compare(session, ids, now=clock(session)))


def _best_of(session: Session, search_id: str) -> str:
    search = jobs.get_search(session, search_id, now=clock(session))
    if search.best is None:
        raise NotYetThere(f"search {search_id!r} has found nothing that keeps its budget yet")
    return f"{search_id}-{search.best.number}"
