"""Found networks side by side."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from service import jobs
from service.api.dependencies import Reading
from service.api.documented import NOT_FOUND
from service.api.schemas import ComparisonAnswer
from service.db.session import clock
from service.errors import NotYetThere, SearchNotFound

router = APIRouter(tags=["compare"])

Listed = Annotated[str, Query(max_length=1000)]


@router.get("/compare", responses=NOT_FOUND)
def compare(session: Reading, trials: Listed = "", searches: Listed = "") -> ComparisonAnswer:
    """Compare 2 to 8 trials (`trials=<id>,<search>:<number>`), or the best of some searches."""
    ids = [one.replace(":", "-") for one in trials.split(",") if one]
    ids += _best_of(session, [one for one in searches.split(",") if one])
    return ComparisonAnswer.of(jobs.compare(session, ids, now=clock(session)))


def _best_of(session: Session, search_ids: Sequence[str]) -> Iterator[str]:
    found = jobs.get_searches(session, search_ids, now=clock(session)) if search_ids else ()
    best = {search.id: search.best for search in found}
    for search_id in search_ids:
        if search_id not in best:
            raise SearchNotFound(search_id)
        if (chosen := best[search_id]) is None:
            raise NotYetThere(f"search {search_id!r} has found nothing that keeps its budget yet")
        yield f"{search_id}-{chosen.number}"
