"""The way into the pages: a key is exchanged for a cookie that no script can read."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from service import jobs
from service.dashboard.pages import is_page, render, rows_of
from service.db.session import clock
from service.errors import KeyRefused, OriginMissing

COOKIE = "matnas_session"
# A key and an address are short; more fields than these are nobody's form.
MOST_FIELDS = 10
UNCACHED = {"Cache-Control": "no-store"}

router = APIRouter(default_response_class=HTMLResponse)

Next = Annotated[str, Query(max_length=2000)]
Form = Annotated[bytes, Body(media_type="application/x-www-form-urlencoded")]


@router.get("/login")
def ask(request: Request, next: Next = "/") -> HTMLResponse:  # noqa: A002  (what the address says)
    """Ask for a key."""
    return render(request, "login.html", headers=UNCACHED, next=_inside(next), wrong="")


@router.post("/login")
def sign_in(request: Request, form: Form) -> Response:
    """Exchange a key for a session, and go on to where one was going."""
    check_origin(request.headers)
    fields = dict(parse_qsl(form.decode(errors="replace"), max_num_fields=MOST_FIELDS))
    target = _inside(fields.get("next", "/"))
    try:
        # Anybody may ask, and a write waits for SQLite's one lock, with the workers' heartbeats.
        with rows_of(request).read() as session:
            now = clock(session)
            key = jobs.key_of(session, fields.get("key", "").strip(), now=now)
    except KeyRefused as error:
        return render(
            request, "login.html", status=401, headers=UNCACHED, next=target, wrong=error.sentence
        )
    with rows_of(request).write() as session:
        token = jobs.open_session(session, key, now=now)
    answer = RedirectResponse(target, 303, headers=UNCACHED)
    answer.set_cookie(
        COOKIE,
        token,
        max_age=int(jobs.LIFETIME.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout")
def sign_out(request: Request) -> Response:
    """End the session, here and in the browser."""
    check_origin(request.headers)
    if (token := request.cookies.get(COOKIE)) and _is_open(request, token):
        with rows_of(request).write() as session:
            jobs.close_session(session, token)
    answer = RedirectResponse("/login", 303, headers=UNCACHED)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def to_login(request: Request) -> Response:
    """Send a person who has shown no key to where one is asked for."""
    here = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
    return RedirectResponse(f"/login?{urlencode({'next': here})}", 303, headers=UNCACHED)


def check_origin(headers: Mapping[str, str]) -> None:
    """Refuse a write that a cookie allows and that does not say which page it comes from.

    What comes from elsewhere has been refused before; every browser says one or the other.
    """
    if "origin" not in headers and headers.get("sec-fetch-site") != "same-origin":
        raise OriginMissing("a write by session must say its Origin; a key needs none")


def _is_open(request: Request, token: str) -> bool:
    with rows_of(request).read() as session:
        return jobs.key_of_session(session, token, now=clock(session)) is not None


def _inside(address: str) -> str:
    """An address of ours, whatever was asked for."""
    parts = urlsplit(address)
    ours = not parts.scheme and not parts.netloc and is_page(parts.path)
    return address if ours else "/"
