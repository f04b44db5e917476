"""What becomes of a search, as it happens: server-sent events, or JSON for those who ask again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from service import jobs
from service.api.dependencies import Rows
from service.api.documented import NOT_FOUND, Responses
from service.api.door import Asking
from service.api.paging import Limit
from service.api.schemas import EventAnswer, EventList, SearchAnswer
from service.db.session import Database, clock
from service.errors import SearchNotFound

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
LARGEST_ID = 2**63 - 1

STREAM: Responses = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
}

router = APIRouter(prefix="/searches/{search_id}/events", tags=["events"])


@router.get("", response_model=EventList, responses=NOT_FOUND | STREAM)
async def events(
    search_id: str,
    request: Request,
    rows: Rows,
    asking: Asking,
    after: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
    limit: Limit = 100,
    last_event_id: Annotated[str, Header(max_length=20)] = "0",
) -> Response:
    """Stream events from Last-Event-ID on until the search has ended; with `after`, list them."""
    if after is not None:
        answer = await run_in_threadpool(_list, rows, search_id, after, limit)
        return Response(answer.model_dump_json(), media_type="application/json")
    last = min(int(last_event_id), LARGEST_ID) if last_event_id.isdecimal() else 0
    await run_in_threadpool(_news, rows, search_id, last)  # 404 before the stream begins
    stream = _stream(rows, search_id, last, asking, request.app.state.stopping)
    return EventSourceResponse(stream, headers={"X-Accel-Buffering": "no"})


async def _stream(
    rows: Database, search_id: str, last: int, asking: jobs.Actor, stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    told, silent = "", 0.0
    while not stopping.is_set():
        try:
            found, search = await run_in_threadpool(_news, rows, search_id, last)
        except SearchNotFound:  # it was deleted meanwhile
            return
        if not await run_in_threadpool(_may_stay, rows, asking):
            return
        for event in found:
            last, silent = event.id, 0.0
            yield format_sse_event(data_str=event.model_dump_json(), event="event", id=str(last))
        now = search.model_dump_json()
        if now != told:
            told, silent = now, 0.0
            yield format_sse_event(data_str=now, event="progress")
        if search.ended_at is not None and not found:
            return
        if silent >= HEARTBEAT_SECONDS:
            silent = 0.0
            yield KEEPALIVE_COMMENT
        with anyio.move_on_after(POLL_SECONDS):
            await stopping.wait()
        silent += POLL_SECONDS


def _may_stay(rows: Database, asking: jobs.Actor) -> bool:
    """Whether what opened the stream would still open it: a key may be revoked meanwhile."""
    with rows.read() as session:
        return jobs.still_let_in(session, asking, now=clock(session))


def _news(
    rows: Database, search_id: str, after: int
) -> tuple[tuple[EventAnswer, ...], SearchAnswer]:
    with rows.read() as session:
        found = jobs.events(session, search_id, after=after)
        search = jobs.get_search(session, search_id, now=clock(session))
    answers = tuple(EventAnswer.model_validate(view) for view in found)
    return answers, SearchAnswer.model_validate(search)


def _list(rows: Database, search_id: str, after: int, limit: int) -> EventList:
    with rows.read() as session:
        found = jobs.events(session, search_id, after=after, limit=limit)
    items = tuple(EventAnswer.model_validate(view) for view in found)
    link = f"/v1/searches/{search_id}/events?after={items[-1].id}&limit={limit}" if items else None
    return EventList(items=items, next=link)
