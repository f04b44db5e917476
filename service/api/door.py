"""Who asks, and whether they may: what stands before every route but the few that are open."""

from ipaddress import ip_address
from typing import Annotated, Any, final

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from service import jobs
from service.api.dependencies import Rows
from service.api.requests import SAFE_METHODS
from service.credentials import Scope
from service.dashboard.login import COOKIE, check_origin
from service.db.session import clock
from service.errors import KeyRefused, ScopeMissing

NO_KEY = (
    "this server wants an API key, sent as Authorization: Bearer <key>; "
    "`matnas keys create` makes one, and clients read it from MATNAS_API_KEY"
)
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

    def __call__(self, request: Request, rows: Rows, presented: Presented) -> None:
        """Let a request in, or raise KeyRefused or ScopeMissing."""
        needed = self._scope or ("read" if request.method in SAFE_METHODS else "submit")
        with rows.read() as session:
            actor = _actor(request, session, presented)
        if actor.key_id is not None:
            request.app.state.rate_limit.take(actor.key_id)
        if needed not in actor.scopes:
            raise ScopeMissing(f"the key {actor.key_id} lacks the scope {needed}")
        request.state.actor = actor


def actor(request: Request) -> jobs.Actor:
    """Who has been let in."""
    found: jobs.Actor = request.state.actor
    return found


Asking = Annotated[jobs.Actor, Depends(actor)]


def _actor(
    request: Request, session: Session, presented: HTTPAuthorizationCredentials | None
) -> jobs.Actor:
    if presented is not None:
        key = jobs.key_of(session, presented.credentials, now=clock(session))
        return jobs.Actor(key.id, frozenset(key.scopes))
    if token := request.cookies.get(COOKIE):
        shown = jobs.key_of_session(session, token, now=clock(session))
        if shown is not None:
            if request.method not in SAFE_METHODS:
                check_origin(request.headers)
            return jobs.Actor(shown.id, frozenset(shown.scopes), by_session=True)
    if _from_this_machine(request) and not jobs.any_key(session):
        return jobs.ANYBODY
    raise KeyRefused(NO_KEY)


def _from_this_machine(request: Request) -> bool:
    """Whether the address that was connected to is one that only this machine can reach."""
    address, _ = request.scope.get("server") or ("", None)
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
