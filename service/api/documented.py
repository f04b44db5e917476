"""What the OpenAPI document says of answers that are no success: problems, and nothing new."""

from http import HTTPStatus
from typing import Any, final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]


@final
class WrongField(BaseModel):
    """One field to change, empty for the whole body, and what is wrong with it."""

    field: str
    sentence: str


@final
class Problem(BaseModel):
    """What went wrong (RFC 9457); `field` and `errors` say where, if it can be said."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    field: str | None = None
    errors: list[WrongField] = []


def problems(*statuses: int) -> Responses:
    """Say that a route may answer so."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in statuses
    }


# The gate in front of every route refuses some requests; query, path and headers are read first.
EVERYWHERE = problems(400, 403, 413, 415, 422, 429, 500, 503)
NOT_FOUND = problems(404)
CONFLICT = problems(409)
CHANGED = problems(412)
BODY_REFUSED = problems(415)
NOT_MODIFIED: Responses = {304: {"description": "Nothing has changed since the given ETag."}}


def describe(app: FastAPI) -> None:
    """Have the document say what a problem is, and that what a path names may be missing."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            parts = document.setdefault("components", {}).setdefault("schemas", {})
            parts |= schema.pop("$defs")
            parts["Problem"] = schema
            for path, operations in document["paths"].items():
                if "{" in path:  # what is named there may not be there, whatever it is
                    for operation in operations.values():
                        operation["responses"].setdefault("404", problems(404)[404])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
