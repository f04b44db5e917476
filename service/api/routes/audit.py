"""What has been done that no search's events tell: keys, webhooks, deletions."""

from datetime import datetime
from typing import Annotated, final

from fastapi import APIRouter, Query, Request

from service import jobs
from service.api.dependencies import Reading
from service.api.paging import Limit
from service.api.schemas import Answer, Page

LARGEST_ID = 2**63 - 1

router = APIRouter(prefix="/audit", tags=["administration"])


@final
class ActAnswer(Answer):
    """Who did what, to what, and on which request."""

    id: int
    action: str
    subject: str
    sentence: str
    actor: str
    request_id: str | None
    at: datetime


@final
class ActList(Page):
    """Acts, the newest first."""

    items: tuple[ActAnswer, ...]


@router.get("")
def list_acts(
    session: Reading,
    request: Request,
    before: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
    limit: Limit = 50,
) -> ActList:
    """List what was done to keys and webhooks, and which searches were deleted."""
    found = jobs.list_acts(session, before=before, limit=limit)
    link = None
    if len(found) == limit:
        url = request.url.include_query_params(before=found[-1].id)
        link = f"{url.path}?{url.query}"
    return ActList(items=tuple(ActAnswer.model_validate(one) for one in found), next=link)
