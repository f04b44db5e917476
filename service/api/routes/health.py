"""Whether the process lives, whether it can work, and which version it is."""

import platform
from importlib.metadata import version as version_of
from typing import Literal, final

from fastapi import APIRouter, Response
from kombu.exceptions import KombuError
from sqlalchemy.exc import SQLAlchemyError

from service.api.dependencies import Rows
from service.api.schemas import Answer
from service.db.migrations import at_head
from service.db.session import Database
from service.queue import celery_app

State = Literal["ok", "failing"]

router = APIRouter(tags=["health"])


@final
class Alive(Answer):
    """The process answers."""

    status: Literal["ok"]


@final
class Readiness(Answer):
    """Whether each thing that work needs is there."""

    status: State
    database: State
    migrations: State
    broker: State


@final
class VersionAnswer(Answer):
    """What runs."""

    version: str
    api: Literal["v1"]
    python: str


@router.get("/healthz")
def healthz() -> Alive:
    """Say that the process lives, whatever else is broken."""
    return Alive(status="ok")


@router.get("/readyz", responses={503: {"model": Readiness}})
def readyz(rows: Rows, response: Response) -> Readiness:
    """Say whether searches can be taken and passed on; 503 if not."""
    database, migrations = _database(rows)
    checks = (database, migrations, broker := _broker())
    status: State = "ok" if all(check == "ok" for check in checks) else "failing"
    if status == "failing":
        response.status_code = 503
    return Readiness(status=status, database=database, migrations=migrations, broker=broker)


@router.get("/version")
def version() -> VersionAnswer:
    """Say which version runs."""
    return VersionAnswer(version=version_of("matnas"), api="v1", python=platform.python_version())


def _database(rows: Database) -> tuple[State, State]:
    try:
        with rows.engine.connect() as connection:
            return "ok", "ok" if at_head(connection) else "failing"
    except SQLAlchemyError:
        return "failing", "failing"


def _broker() -> State:
    try:
        with celery_app().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=2, reraise_as_library_errors=True)
    except (KombuError, OSError):
        return "failing"
    return "ok"
