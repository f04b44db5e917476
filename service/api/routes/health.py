"""Whether the process lives, whether it can work, and which version it is."""

import platform
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version as version_of
from typing import Annotated, Literal, final

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import PlainTextResponse
from kombu.exceptions import KombuError
from prometheus_client.exposition import choose_encoder
from sqlalchemy.exc import SQLAlchemyError

from service import jobs
from service.api.dependencies import Installation, Rows
from service.api.schemas import Answer
from service.db.migrations import at_head
from service.db.session import Database, clock
from service.queue import celery_app

State = Literal["ok", "failing"]

REMEDIES = {
    "database": "the database does not answer; MATNAS_DATABASE_URL says where it is",
    "migrations": "the tables are not those of this version; say: matnas db upgrade",
    "broker": "the broker does not answer; MATNAS_BROKER_URL says where it is",
    "worker": "no worker has been heard of lately; start one with: matnas worker",
}

router = APIRouter(tags=["health"])
# What asks these has no key: the machinery that restarts processes and sends requests to them.
open_to_all = APIRouter(tags=["health"])


@final
class Alive(Answer):
    """The process answers."""

    status: Literal["ok"]


@final
class Readiness(Answer):
    """Whether each thing that work needs is there; `remedies` say what to do about the others."""

    status: State
    database: State
    migrations: State
    broker: State
    worker: State
    remedies: tuple[str, ...]


@final
class VersionAnswer(Answer):
    """What runs."""

    version: str
    api: Literal["v1"]
    python: str


@open_to_all.get("/healthz")
async def healthz() -> Alive:
    """Say that the process lives, whatever else is broken."""
    return Alive(status="ok")


@open_to_all.get("/readyz", responses={503: {"model": Readiness}})
def readyz(rows: Rows, installation: Installation, response: Response) -> Readiness:
    """Say whether searches can be taken, passed on and worked at; 503 if not."""
    within = timedelta(seconds=installation.fresh_seconds)
    checks = {**_rows(rows, within), "broker": _broker()}
    ready = all(checks.values())
    if not ready:
        response.status_code = 503
    told: dict[str, State] = {name: "ok" if fine else "failing" for name, fine in checks.items()}
    # Without a database nothing is known of what is in it.
    wrong = [name for name, fine in checks.items() if not fine]
    remedies = tuple(
        REMEDIES[name] for name in wrong if name in ("database", "broker") or checks["database"]
    )
    return Readiness(status="ok" if ready else "failing", **told, remedies=remedies)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, accept: Annotated[str, Header()] = "") -> Response:
    """Tell what Prometheus reads."""
    generate, media_type = choose_encoder(accept)
    return Response(generate(request.app.state.metrics.registry), media_type=media_type)


@router.get("/version")
async def version() -> VersionAnswer:
    """Say which version runs."""
    return VersionAnswer(version=version_of("matnas"), api="v1", python=platform.python_version())


def _rows(rows: Database, within: timedelta) -> dict[str, bool]:
    found = {"database": False, "migrations": False, "worker": False}
    with suppress(SQLAlchemyError), rows.read() as session:
        found["migrations"] = at_head(session.connection())
        found["database"] = True
        workers = jobs.living_workers(session, now=clock(session), within=within)
        found["worker"] = workers > 0
    return found


def _broker() -> bool:
    try:
        with celery_app().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=2, reraise_as_library_errors=True)
    except (KombuError, OSError):
        return False
    return True
