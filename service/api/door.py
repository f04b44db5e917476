"""Who asks, and whether they may: what stands before every route but the few that are open."""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated, Any, final

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from service import jobs
from service.api.rate import RateLimit
from service.api.requests import SAFE_METHODS
from service.api.together import Together
from service.credentials import Scope, fingerprint
from service.dashboard.login import COOKIE, check_origin
from service.db.session import Database, clock
from service.errors import KeyRefused, ScopeMissing

NO_KEY = (
    "this server wants an API key, sent as Authorization: Bearer <key>; "
    "`matnas keys create` makes one, and clients read it from MATNAS_API_KEY"
)
# How soon the first key, if `matnas keys` makes it, is noticed by a service that had none.
OPEN_SECONDS = 1.0
# What a door may answer in the place of its route, for the OpenAPI document.
ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"application/problem+json": {}}}
    for status, words in {
        401: "No key, or one that is unknown, expired or revoked",
        403: "The key lacks the scope, or the request comes from another site's page",
        429: "The key asks too often, or has all in use that its quota allows",
    }.items()
}

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key. None is needed on loopback until the first key has been made.",
)
Presented = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


@final
class Door:
    """Lets in whose key has the scope; unless told which, `read` to look and `submit` to change."""

    def __init__(self, scope: Scope | None = None) -> None:
        self._scope = scope

    async def __call__(self, request: Request, presented: Presented) -> None:
        """Let a request in, or raise KeyRefused or ScopeMissing."""
        if presented is not None:
            actor = await _holder(request, presented.credentials)
        elif _is_known_to_be_open(request):
            actor = jobs.ANYBODY
        else:
            actor = await run_in_threadpool(_visitor, request)
        if actor.key_id is not None:
            await _count(request, actor.key_id)
        needed = self._scope or ("read" if request.method in SAFE_METHODS else "submit")
        if needed not in actor.scopes:
            raise ScopeMissing(f"the key {actor.key_id} lacks the scope {needed}")
        request.state.actor = actor


@final
class OpenDoor:
    """That there was no key a moment ago, so that not every request has to ask for it."""

    def __init__(self) -> None:
        self._until = 0.0

    @staticmethod
    def of(request: Request) -> "OpenDoor":
        """The one of this application."""
        found: OpenDoor = request.app.state.open_door
        return found

    def is_known(self) -> bool:
        """Whether the rows have been asked within a second."""
        return time.monotonic() < self._until

    def seen(self) -> None:
        """Take note that there is no key."""
        self._until = time.monotonic() + OPEN_SECONDS

    def shut(self) -> None:
        """Ask again: a key is being made."""
        self._until = 0.0


async def actor(request: Request) -> jobs.Actor:
    """Who has been let in."""
    found: jobs.Actor = request.state.actor
    return found


Asking = Annotated[jobs.Actor, Depends(actor)]


def read_keys(session: Session, texts: Sequence[str]) -> Mapping[str, jobs.KeyView | KeyRefused]:
    """Whose keys these are, or why they open nothing: asked of the rows for every request."""
    found: dict[str, jobs.KeyView | KeyRefused] = {}
    now = clock(session)
    for text in texts:
        try:
            found[text] = jobs.key_of(session, text, now=now)
        except KeyRefused as refused:
            found[text] = refused
    return found


async def _holder(request: Request, text: str) -> jobs.Actor:
    keys: Together[str, jobs.KeyView | KeyRefused] = request.app.state.keys
    key = await keys.ask(text)
    assert key is not None
    if isinstance(key, KeyRefused):
        raise KeyRefused(key.sentence)
    return jobs.Actor(key.id, frozenset(key.scopes))


async def _count(request: Request, key_id: str) -> None:
    limit: RateLimit = request.app.state.rate_limit
    if limit.asks_redis:
        await run_in_threadpool(limit.take, key_id)
    else:
        limit.take(key_id)


def _visitor(request: Request) -> jobs.Actor:
    """Who comes without a key: with a session, or from this machine while there are no keys."""
    rows: Database = request.app.state.database
    with rows.read() as session:
        if token := request.cookies.get(COOKIE):
            shown = jobs.key_of_session(session, token, now=clock(session))
            if shown is not None:
                if request.method not in SAFE_METHODS:
                    check_origin(request.headers)
                return jobs.Actor(shown.id, frozenset(shown.scopes), fingerprint(token))
        if _from_this_machine(request) and not jobs.any_key(session):
            OpenDoor.of(request).seen()
            return jobs.ANYBODY
    raise KeyRefused(NO_KEY)


def _is_known_to_be_open(request: Request) -> bool:
    nameless = COOKIE not in request.cookies
    return nameless and _from_this_machine(request) and OpenDoor.of(request).is_known()


def _from_this_machine(request: Request) -> bool:
    """Whether the address that was connected to is one that only this machine can reach."""
    address, _ = request.scope.get("server") or ("", None)
    return _is_loopback(address)


@lru_cache(maxsize=100)
def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
