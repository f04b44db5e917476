"""What every request meets first: an id, a log line, limits, and the same-site rules."""

import logging
import re
import time
from collections.abc import Callable
from typing import final
from uuid import uuid4

from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.api.problems import SECURITY_HEADERS, problem

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d+)?", re.ASCII)
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

logger = logging.getLogger(__name__)


@final
class RequestGate:
    """Names the request, refuses what may not pass, counts its body and logs it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str],
        max_body_bytes: int,
        max_upload_bytes: int,
        observe: Callable[[Scope, int, float], None] = lambda *_: None,
    ) -> None:
        self._app = app
        self._hosts = LOCAL_HOSTS | {host.lower() for host in hosts}
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id", ""))
        scope.setdefault("state", {})["request_id"] = request_id
        logs.note(request_id=request_id)
        started, began, status = time.monotonic(), None, 500

        async def send_named(message: Message) -> None:
            nonlocal began, status
            if message["type"] == "http.response.start":
                began, status = time.monotonic(), message["status"]
                dress(MutableHeaders(scope=message), request_id)
            await send(message)

        try:
            refused = self._refusal(scope, headers, request_id)
            counted = _counted(receive, self._limit(scope))
            await (refused or self._app)(scope, counted, _plain_errors_told(send_named, scope))
        finally:
            ended = time.monotonic()
            self._observe(scope, status, (began or ended) - started)
            _log(scope, status, 1000 * (ended - started))

    def _limit(self, scope: Scope) -> int:
        uploads = scope["method"] == "PUT" and scope["path"].endswith("/artifacts")
        return self._max_upload_bytes if uploads else self._max_body_bytes

    def _refusal(self, scope: Scope, headers: Headers, request_id: str) -> Response | None:
        if b"%00" in scope["query_string"] or "\0" in scope["path"]:
            return problem(request_id, 400, "the address holds a NUL character")
        host = HOST.fullmatch(headers.get("host", ""))
        # The address that was connected to is ours, whatever it is; only names can be rebound.
        known = self._hosts | {(scope.get("server") or ("",))[0]}
        if host is None or host["name"].strip("[]").lower() not in known:
            sentence = "this server does not answer to that Host; MATNAS_ALLOWED_HOSTS may name it"
            return problem(request_id, 400, sentence)
        if scope["method"] not in SAFE_METHODS and _from_elsewhere(headers):
            return problem(request_id, 403, "writes are taken from this server's own pages only")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            # How large it would become, nobody knows before.
            return problem(request_id, 415, "send the body as it is, without a Content-Encoding")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limit(scope):
            return problem(request_id, 413, _too_large(self._limit(scope)))
        return None


def _log(scope: Scope, status: int, milliseconds: float) -> None:
    path = scope["path"].encode("unicode_escape").decode()
    named = scope.get("path_params", {})
    extra = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "milliseconds": round(milliseconds, 1),
        **{name: named[name] for name in ("search_id",) if name in named},
    }
    logger.info("%s %s %d %.0f ms", scope["method"], path, status, milliseconds, extra=extra)


def dress(headers: MutableHeaders, request_id: str) -> None:
    """Put on what every answer carries."""
    headers["X-Request-ID"] = request_id
    headers.setdefault("Cache-Control", "no-cache")
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)


def _plain_errors_told(send: Send, scope: Scope) -> Send:
    """Turn the few errors that Starlette answers in plain text (a bad Range) into problems."""
    told: Response | None = None

    async def sending(message: Message) -> None:
        nonlocal told
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = Headers(raw=message["headers"])
            if headers.get("content-type", "").startswith("text/plain"):
                kept = {k: v for k, v in headers.items() if k == "content-range"}
                told = problem(
                    scope["state"]["request_id"],
                    message["status"],
                    "the request cannot be answered as it stands",
                    headers=kept,
                )
                return
        if told is None:
            await send(message)
        elif not message.get("more_body"):
            await told(scope, _nothing, send)

    return sending


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _request_id(offered: str) -> str:
    return offered if re.fullmatch(r"[\w-]{1,64}", offered, re.ASCII) else uuid4().hex


def _from_elsewhere(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _counted(receive: Receive, limit: int) -> Receive:
    """Refuse a body as soon as it is too long, whatever its headers promised."""
    seen = 0

    async def counting() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counting


def _too_large(limit: int) -> str:
    return f"the body is larger than the {limit:,} bytes that are accepted here"
