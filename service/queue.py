"""The one Celery app: a message carries the id of a trial, and only hints that its row waits."""

import json
import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from time import monotonic_ns
from typing import Any, final
from uuid import uuid4

from celery import Celery
from kombu.exceptions import KombuError
from kombu.transport import filesystem
from opentelemetry.trace import SpanKind
from sqlalchemy import event
from sqlalchemy.orm import Session

from service import tracing
from service.settings import Settings, get_settings

RUN_TRIAL = "matnas.run_trial"
# How soon a worker sees a message in a folder; Redis tells it at once.
POLLING_SECONDS = 0.2

log = logging.getLogger(__name__)


@cache
def celery_app() -> Celery:
    """The app of this process, from the environment's settings."""
    return make_app(get_settings())


def make_app(settings: Settings) -> Celery:
    """Celery with everything off that recovery does not need: the rows do what it would do."""
    app = Celery("matnas", set_as_current=False)
    in_folders = settings.broker_url.startswith("filesystem:")
    app.conf.update(
        broker_url=settings.broker_url,
        broker_transport=f"{__name__}:FolderTransport" if in_folders else None,
        broker_transport_options=_folders(settings) if in_folders else _REDIS,
        broker_connection_retry_on_startup=True,
        task_default_queue="matnas",
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # A worker holds no message that another could work on. Redis has a switch for that; over
        # folders, one unacknowledged message for each slot comes to the same, and acknowledging
        # late costs nothing there: a message that was taken is gone either way.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=not in_folders,
        task_acks_late=in_folders,
        worker_pool="threads",
        worker_concurrency=settings.worker_concurrency,
        worker_enable_remote_control=False,
        worker_redirect_stdouts=False,
    )
    return app


def send_after_commit(session: Session, trial_ids: Iterable[str]) -> None:
    """Send a hint for each trial once the session's transaction is committed, if it is."""
    ids = tuple(trial_ids)
    if ids:
        event.listen(session, "after_commit", lambda _: _send(ids), once=True)


def _send(trial_ids: tuple[str, ...]) -> None:
    for trial_id in trial_ids:
        try:
            with tracing.span(f"{RUN_TRIAL} send", kind=SpanKind.PRODUCER):
                headers = {"traceparent": tracing.here()}
                celery_app().send_task(RUN_TRIAL, args=[trial_id], retry=False, headers=headers)
        except (KombuError, OSError) as error:
            # The rows are committed, and are hinted again: a broker's absence refuses no search.
            log.warning("no hint could be sent for trial %s: %s", trial_id, error)
            return


# A request does not wait for a broker that is away; a worker waits by Celery's own settings.
_REDIS = {"socket_connect_timeout": 2.0, "max_retries": 1, "interval_start": 0}


def _folders(settings: Settings) -> dict[str, Any]:
    broker = settings.home.resolve() / "broker"
    messages, control = broker / "messages", broker / "control"
    for folder in (messages, control):
        folder.mkdir(parents=True, exist_ok=True)
    return {
        # What one process writes out is what another reads in: it is the same folder.
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": POLLING_SECONDS,
    }


@final
class FolderChannel(filesystem.Channel):
    """Kombu's channel over folders, with messages that appear whole."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]  # noqa: ARG002
        # Kombu writes where its readers look, and a worker that takes an empty message ends
        # (kombu issue 1551). Names sort by time; only those that end in `.<queue>.msg` are read.
        folder = Path(self.data_folder_out)
        name = f"{monotonic_ns():020d}_{uuid4()}.{queue}.msg"
        partial = folder / f"{name}.part"
        partial.write_text(json.dumps(payload))
        partial.rename(folder / name)


@final
class FolderTransport(filesystem.Transport):
    """The embedded broker."""

    Channel = FolderChannel
