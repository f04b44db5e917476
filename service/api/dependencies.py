"""What a route is given: one session, which is one transaction, and what the request says."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from service.db.session import Database
from service.errors import IdempotencyInFlight
from service.settings import Settings

# What only looks something up is a coroutine: a plain function would be sent to another thread.


async def database(request: Request) -> Database:
    """Where this application's rows are."""
    found: Database = request.app.state.database
    return found


async def settings(request: Request) -> Settings:
    """What this application was started with."""
    found: Settings = request.app.state.settings
    return found


async def reading(
    request: Request, rows: Annotated[Database, Depends(database)]
) -> AsyncIterator[Session]:
    """Give a view of the rows that does not change during the request."""
    async with request.app.state.sessions, contextmanager_in_threadpool(rows.read()) as session:
        yield session


async def writing(
    request: Request, rows: Annotated[Database, Depends(database)]
) -> AsyncIterator[Session]:
    """Give a transaction that is committed before the answer leaves."""
    async with request.app.state.sessions, contextmanager_in_threadpool(rows.write()) as session:
        yield session


async def request_id(request: Request) -> str:
    """The name of this request in the log, in the events and in the answer."""
    found: str = request.state.request_id
    return found


def taken_key(
    request: Request,
    key: Annotated[
        str | None, Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,200}$")
    ] = None,
) -> Iterator[str | None]:
    """Take the Idempotency-Key until the transaction has ended; who comes meanwhile is told so.

    Between processes the database does the same, but for SQLite, where the second waits.
    """
    if key is None:
        yield None
        return
    in_flight: set[tuple[str | None, str]] = request.app.state.keys_in_flight
    mine = (request.state.actor.key_id, key)  # others may have come to the same one
    with request.app.state.keys_lock:
        if mine in in_flight:
            raise IdempotencyInFlight(
                "the first request with this Idempotency-Key is being answered"
            )
        in_flight.add(mine)
    try:
        yield key
    finally:
        in_flight.discard(mine)


def content_type(request: Request) -> str:
    """What a body calls itself, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_only(request: Request) -> None:
    """Refuse a body that does not call itself JSON: a page elsewhere cannot send one unasked."""
    if content_type(request) != "application/json":
        raise HTTPException(415, "send the body as application/json")
    if b"\\u0000" in await request.body():  # PostgreSQL keeps no such text
        raise HTTPException(422, "the body holds a NUL character")


# The default scope would commit after the answer: a failed commit would still have said 202.
Reading = Annotated[Session, Depends(reading, scope="function")]
Writing = Annotated[Session, Depends(writing, scope="function")]
Rows = Annotated[Database, Depends(database)]
Installation = Annotated[Settings, Depends(settings)]
# Named before the session among a route's parameters, it outlasts the commit.
KeyTaken = Annotated[str | None, Depends(taken_key, scope="function")]
RequestId = Annotated[str, Depends(request_id)]
