"""The workers: which there are, and what each does."""

from datetime import timedelta

from fastapi import APIRouter

from service import jobs
from service.api.dependencies import Installation, Reading
from service.api.schemas import WorkerAnswer, WorkerList
from service.db.session import clock

router = APIRouter(tags=["workers"])


@router.get("/workers")
def workers(session: Reading, installation: Installation) -> WorkerList:
    """List the workers of the last day; one that is not alive has not been heard of in time."""
    now = clock(session)
    found = jobs.workers(session, now=now, within=timedelta(seconds=installation.fresh_seconds))
    return WorkerList(items=tuple(WorkerAnswer.model_validate(view) for view in found))
