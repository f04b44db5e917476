"""Every failure as problem+json (RFC 9457), with the request's id and without our insides."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from search.spec import SearchSpec, SpecError
from service.api.sentences import Fault, faults
from service.dashboard import login, pages
from service.db.session import tables_are_missing
from service.errors import ServiceError, Unavailable
from service.storage import StorageAway

SEARCH_SCHEMA = SearchSpec.model_json_schema()
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
REMEDIES = {
    HTTPStatus.NOT_FOUND: "there is nothing here; /openapi.json lists what there is",
    HTTPStatus.METHOD_NOT_ALLOWED: "this address does not answer that method; see Allow",
    HTTPStatus.INTERNAL_SERVER_ERROR: "this is our fault; the log has more under the request's id",
}

log = logging.getLogger(__name__)


def problem(
    request_id: str,
    status: int,
    detail: str,
    *,
    code: str | None = None,
    wrong: tuple[Fault, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """One answer for everything that goes wrong; `wrong` names the fields to change."""
    phrase = HTTPStatus(status).phrase
    body: dict[str, Any] = {
        "type": f"urn:matnas:problem:{code or phrase.lower().replace(' ', '_')}",
        "title": phrase,
        "status": status,
        "detail": detail,
        "request_id": request_id,
    }
    if len(wrong) == 1:
        body["field"] = wrong[0].field
    if wrong:
        body["errors"] = [{"field": one.field, "sentence": one.sentence} for one in wrong]
    # ASCII only: what a client sent may hold surrogates, which UTF-8 cannot.
    return Response(
        json.dumps(body), status, headers=headers, media_type="application/problem+json"
    )


def install(app: FastAPI) -> None:
    """Let `app` answer every exception with a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(SpecError, _spec_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(PoolTimeout, _too_busy)
    app.add_exception_handler(StorageAway, _storage_away)
    app.add_exception_handler(Exception, _our_fault)


def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    wrong = (Fault(error.field, error.sentence),) if error.field is not None else ()
    again = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    headers = {**again, **(error.headers or {})}
    return _told(
        request, error.status, error.sentence, code=error.code, wrong=wrong, headers=headers
    )


def _database_error(request: Request, error: Exception) -> Response:
    """Tell whose fault it is where the database is away or was never prepared; else it is ours."""
    assert isinstance(error, DBAPIError)
    if tables_are_missing(error):
        sentence = "the database has not the tables of this version; say: matnas db upgrade"
        return _service_error(request, Unavailable(sentence))
    if error.connection_invalidated or isinstance(error, OperationalError):
        log.error("the database does not answer: %s", error.orig)
        return _service_error(request, Unavailable("the database does not answer just now"))
    raise error


def _too_busy(request: Request, error: Exception) -> Response:
    """No connection to the database became free in time: others wait for it too long."""
    log.error("%s", error)
    return _service_error(request, Unavailable("the database is asked too much just now"))


def _storage_away(request: Request, error: Exception) -> Response:
    log.error("%s", error)
    return _service_error(request, Unavailable("the store of files does not answer just now"))


def _spec_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SpecError)
    wrong = (Fault(error.field, error.sentence),)
    return _told(request, 422, error.sentence, code="spec_refused", wrong=wrong)


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = faults(error.errors(), body=error.body, schema=_schema_of_body(request))
    detail = "; ".join(fault.sentence for fault in wrong)
    return _told(request, 422, detail, code="malformed", wrong=wrong)


def _schema_of_body(request: Request) -> Mapping[str, Any]:
    """The schema that a body was to follow; of a merge patch, that of what it changes."""
    field = getattr(request.scope.get("route"), "body_field", None)
    kind = field.field_info.annotation if field is not None else None
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not SearchSpec:
        return kind.model_json_schema()
    return SEARCH_SCHEMA


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    said = "" if error.detail == status.phrase else error.detail
    headers = error.headers
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": ", ".join(_methods(request))}
    return _told(request, status, said or REMEDIES.get(status, status.phrase), headers=headers)


def _methods(request: Request) -> list[str]:
    """What an address answers: each of its routes knows of its own method alone."""
    answered = [
        method
        for method in METHODS
        for scope in [dict(request.scope, method=method)]
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]
    return sorted(answered + (["HEAD"] if "GET" in answered else []))


def _our_fault(request: Request, _: Exception) -> Response:
    # This answer leaves outside of the gate, which dresses all others.
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    named = {"X-Request-ID": request.state.request_id}
    return _told(request, status, REMEDIES[status], headers=SECURITY_HEADERS | named)


def _told(
    request: Request,
    status: int,
    detail: str,
    *,
    code: str | None = None,
    wrong: tuple[Fault, ...] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    if pages.is_page(request.url.path):
        if status == HTTPStatus.UNAUTHORIZED:
            return login.to_login(request)
        return pages.problem(request, status, detail, headers)
    return problem(
        request.state.request_id, status, detail, code=code, wrong=wrong, headers=headers
    )
