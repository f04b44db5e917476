"""The application: routes under /v1 and without it, pages, one gate in front of all of them."""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from service.api import problems
from service.api.requests import RequestGate, RequestIdFilter
from service.api.routes import artifacts, catalogue, compare, events, health, searches, trials
from service.dashboard import pages
from service.db.session import Database
from service.settings import Settings, get_settings

ROUTES = (searches, trials, events, artifacts, compare, catalogue, health)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; uvicorn calls this with the environment's settings."""
    installation = settings or get_settings()
    _log_with_request_ids(installation.log_level)
    app = FastAPI(
        title="matnas",
        summary="Neural architecture search over matrix structures, as a service.",
        version=version("matnas"),
        lifespan=_lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.settings = installation
    problems.install(app)
    app.add_middleware(
        RequestGate,
        hosts=installation.allowed_hosts | {installation.host},
        max_body_bytes=installation.max_body_bytes,
        max_upload_bytes=installation.max_upload_bytes,
    )
    for routes in ROUTES:
        app.include_router(routes.router, prefix="/v1")
        app.include_router(routes.router, include_in_schema=False)
    app.include_router(pages.router, include_in_schema=False)
    app.mount("/static", pages.STATIC)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.database = Database(app.state.settings.database)
    app.state.stopping = asyncio.Event()
    try:
        with _hearing_signals(app.state.stopping):
            yield
    finally:
        app.state.database.dispose()


@contextmanager
def _hearing_signals(stopping: asyncio.Event) -> Iterator[None]:
    """Tell the event streams to end with the server, which otherwise waits for them first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hear(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(stopping.set)
        if callable(previous := before[signal.Signals(number)]):
            previous(number, frame)

    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_with_request_ids(level: str) -> None:
    shown = logging.StreamHandler()
    shown.addFilter(RequestIdFilter())
    shown.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")
    )
    for name in ("service", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [shown], False
        logger.setLevel(level)
