"""Found networks side by side."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from service import jobs
from service.api.dependencies import Reading
from service.api.schemas import ComparisonAnswer
from service.db.session import clock
from service.errors import NotYetThere, QueryRefused

FEWEST, MOST = 2, 8

router = APIRouter(tags=["compare"])

Listed = Annotated[str | None, Query(max_length=1000)]


@router.get("/compare")
def compare(session: Reading, trials: Listed = None, searches: Listed = None) -> ComparisonAnswer:
    """Compare 2 to 8 trials (`trials=<id>,<search>:<number>`), or the best of some searches."""
    return compared(session, trials=trials, searches=searches)


def compared(session: Session, *, trials: str | None, searches: str | None) -> ComparisonAnswer:
    """Answer the same for the page."""
    ids = [one.replace(":", "-") for one in _listed(trials)]
    ids += [_best_of(session, one) for one in _listed(searches)]
    if not FEWEST <= len(ids) <= MOST:
        raise QueryRefused(
            f"{len(ids)} networks cannot be compared; name {FEWEST} to {MOST} of them",
            field="searches" if searches else "trials",
        )
    return ComparisonAnswer.of(jobs.compare(session, ids, now=clock(session)))


def _listed(text: str | None) -> list[str]:
    return [one.strip() for one in (text or "").split(",") if one.strip()]


def _best_of(session: Session, search_id: str) -> str:
    search = jobs.get_search(session, search_id, now=clock(session))
    if search.best is None:
        raise NotYetThere(f"search {search_id!r} has found nothing that keeps its budget yet")
    return f"{search_id}-{search.best.number}"
