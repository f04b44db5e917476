"""The application: routes under /v1 and without it, pages, one gate in front of all of them."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI

from service import logs, tracing
from service.api import problems, process
from service.api.documented import EVERYWHERE, describe
from service.api.door import ANSWERS, Door, OpenDoor, read_keys
from service.api.head import HeadAnswers
from service.api.metrics import Metrics
from service.api.rate import RateLimit
from service.api.requests import RequestGate
from service.api.routes import (
    artifacts,
    audit,
    catalogue,
    compare,
    events,
    health,
    keys,
    quota,
    searches,
    trials,
    webhooks,
    workers,
)
from service.api.statuses import read_statuses
from service.api.together import Together
from service.dashboard import login, pages
from service.db.session import CONNECTIONS, Database
from service.settings import Settings, get_settings

# A new module of routes is listed here: the key of who asks must `read`, and `submit` to change.
ROUTES = (searches, trials, events, artifacts, compare, catalogue, quota, workers, health)
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
# For all that needs a connection but for the time that it has a thread: polls, the door, metrics.
SPARE_CONNECTIONS = 4
# Whatever the method, these want a key with the scope `admin`.
ADMINISTRATION = (keys, webhooks, audit)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application, by the environment's settings unless told others."""
    installation = settings or get_settings()
    logs.configure(installation, "service", "uvicorn")
    tracing.configure("matnas-api")
    app = FastAPI(
        # Spans of requests; metrics are at /metrics, and the log has the rest.
        telemetry={
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: scope["path"].removeprefix("/v1") in PROBES,
        },
        title="matnas",
        summary="Neural architecture search over matrix structures, as a service.",
        version=version("matnas"),
        lifespan=_lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # what is not there is said to be missing, not to be elsewhere
    )
    app.state.settings = installation
    app.state.rate_limit = RateLimit(installation)
    app.state.open_door = OpenDoor()
    app.state.metrics = Metrics()
    app.state.keys_in_flight, app.state.keys_lock = set(), threading.Lock()
    problems.install(app)
    describe(app)
    app.add_middleware(HeadAnswers)
    app.add_middleware(
        RequestGate,
        observe=app.state.metrics.observe,
        hosts=installation.allowed_hosts | {installation.host},
        max_body_bytes=installation.max_body_bytes,
        max_upload_bytes=installation.max_upload_bytes,
    )
    for routes in ROUTES:
        _include(app, routes.router, Door())
    for routes in ADMINISTRATION:
        _include(app, routes.router, Door("admin"))
    _include(app, health.open_to_all, None)
    app.include_router(pages.router, include_in_schema=False, dependencies=[Depends(Door())])
    app.include_router(login.router, include_in_schema=False)
    app.mount("/static", pages.STATIC)
    return app


def _include(app: FastAPI, router: APIRouter, door: Door | None) -> None:
    """Answer under /v1 and, for short, without it."""
    dependencies = [] if door is None else [Depends(door)]
    answers = EVERYWHERE if door is None else EVERYWHERE | ANSWERS
    app.include_router(router, prefix="/v1", dependencies=dependencies, responses=answers)
    app.include_router(router, include_in_schema=False, dependencies=dependencies)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    process.use_few_threads(CONNECTIONS)
    app.state.database = Database(app.state.settings.database)
    # A request keeps its connection while it waits for a thread, of which there are as many as
    # connections: were all of these such requests', none of them would ever come to an end.
    app.state.sessions = asyncio.Semaphore(CONNECTIONS - SPARE_CONNECTIONS)
    app.state.keys = Together(app.state.database, read_keys)
    app.state.statuses = Together(app.state.database, read_statuses)
    app.state.newsroom = Together(app.state.database, events.read_news)
    app.state.metrics.watch(app.state.database, app.state.settings)
    app.state.stopping = asyncio.Event()
    try:
        with _hearing_signals(app.state.stopping):
            yield
    finally:
        app.state.database.dispose()
        tracing.flush()


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
