"""What becomes of a search, as it happens: server-sent events, or JSON for those who ask again."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, final

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, format_sse_event
from sqlalchemy.orm import Session

from service import jobs
from service.api.dependencies import Rows
from service.api.documented import NOT_FOUND, Responses
from service.api.door import Asking
from service.api.paging import Limit
from service.api.schemas import EventAnswer, EventList
from service.api.statuses import Status, read_statuses
from service.api.together import Together
from service.db.session import Database, clock
from service.errors import SearchNotFound

POLL_SECONDS = 1.0
# Each search has one of so many moments in that time, at which its streams look.
MOMENTS = 20
HEARTBEAT_SECONDS = 15.0
LARGEST_ID = 2**63 - 1

STREAM: Responses = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
}

router = APIRouter(prefix="/searches/{search_id}/events", tags=["events"])


@final
@dataclass(frozen=True, slots=True)
class Since:
    """What a stream wants to know: what is new since an event and a mark, and if it may stay."""

    search_id: str
    after: int
    mark: str
    asking: jobs.Actor


@final
@dataclass(frozen=True, slots=True)
class News:
    """What a stream is told: events, and how the search is doing, if that is anything new."""

    events: tuple[EventAnswer, ...]
    status: Status | None
    mark: str
    may_stay: bool


Newsroom = Together[Since, News]


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
    newsroom: Newsroom = request.app.state.newsroom
    since = Since(search_id, last, "", asking)
    news = await newsroom.ask(since)
    if news is None:  # 404 before the stream begins
        raise SearchNotFound(search_id)
    stream = _stream(newsroom, since, news, request.app.state.stopping)
    return EventSourceResponse(stream, headers={"X-Accel-Buffering": "no"})


async def _stream(
    newsroom: Newsroom, since: Since, first: News, stopping: asyncio.Event
) -> AsyncIterator[bytes]:
    silent, last, live = 0.0, since.after, True
    news: News | None = first
    # None: it was deleted meanwhile.
    while news is not None and news.may_stay and not stopping.is_set():
        for event in news.events:
            last, silent = event.id, 0.0
            yield format_sse_event(data_str=event.model_dump_json(), event="event", id=str(last))
        if news.status is not None:
            live, silent = news.status.live, 0.0
            yield format_sse_event(data_str=news.status.body, event="progress")
        if not live and not news.events:
            return
        # The estimate alone is no news, for it moves with every moment: it is the heartbeat.
        mark = news.mark if silent < HEARTBEAT_SECONDS else ""
        with anyio.move_on_after(_until_next_look(since.search_id)):
            await stopping.wait()
        silent += POLL_SECONDS
        news = await newsroom.ask(Since(since.search_id, last, mark, since.asking))


def _until_next_look(search_id: str) -> float:
    """Until the moment of this search: streams of one are told together, others at other times."""
    moment = POLL_SECONDS * (hash(search_id) % MOMENTS) / MOMENTS
    return POLL_SECONDS - (asyncio.get_running_loop().time() - moment) % POLL_SECONDS


def read_news(session: Session, asked: Sequence[Since]) -> Mapping[Since, News]:
    """Read what many streams are to be told."""
    pulses = jobs.pulses(session, {one.search_id for one in asked})
    there = [(one, pulses[one.search_id]) for one in asked if one.search_id in pulses]
    changed = {one.search_id for one, pulse in there if pulse.mark != one.mark}
    statuses = read_statuses(session, changed) if changed else {}
    now, actors = clock(session), {one.asking for one in asked}
    stays = {actor: jobs.still_let_in(session, actor, now=now) for actor in actors}
    return {
        one: News(
            _events(session, one) if pulse.last_event > one.after else (),
            statuses[one.search_id] if pulse.mark != one.mark else None,
            pulse.mark,
            stays[one.asking],
        )
        for one, pulse in there
    }


def _events(session: Session, since: Since) -> tuple[EventAnswer, ...]:
    found = jobs.events(session, since.search_id, after=since.after)
    return tuple(EventAnswer.model_validate(view) for view in found)


def _list(rows: Database, search_id: str, after: int, limit: int) -> EventList:
    with rows.read() as session:
        found = jobs.events(session, search_id, after=after, limit=limit)
    items = tuple(EventAnswer.model_validate(view) for view in found)
    link = f"/v1/searches/{search_id}/events?after={items[-1].id}&limit={limit}" if items else None
    return EventList(items=items, next=link)
