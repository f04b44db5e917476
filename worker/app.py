"""The worker's process: `celery -A worker.app worker` takes hints, and this keeps them coming."""

from typing import Any

from celery.signals import setup_logging, worker_ready, worker_shutdown, worker_shutting_down

from service import logs, tracing
from service.db.session import Database
from service.queue import celery_app
from service.settings import get_settings
from worker.attention import Attention
from worker.children import Children
from worker.deliveries import Deliveries
from worker.housekeeping import Housekeeping
from worker.recovery import Recovery
from worker.tasks import register

app = celery_app()
settings = get_settings()
tracing.configure("matnas-worker")
database = Database(settings.database)
children = Children(settings, database)
recovery = Recovery(settings, database)
housekeeping = Housekeeping(settings, database)
deliveries = Deliveries(settings, database)
register(app, children)
app.steps["consumer"].add(Attention)


def log(**_: Any) -> None:
    """Log as the service does; that anything listens to this signal keeps Celery from its own."""
    logs.configure(settings)


def begin(**_: Any) -> None:
    """Look for what earlier workers have left, now and every few seconds."""
    children.prepare()
    recovery.start()
    housekeeping.start()
    deliveries.start()


def end(**_: Any) -> None:
    """Ask the running trials to leave a checkpoint; Celery then waits for their tasks."""
    recovery.stop()
    housekeeping.stop()
    deliveries.stop()
    children.stop()


def leave(**_: Any) -> None:
    """All tasks are done by now."""
    children.close()


setup_logging.connect(log)
worker_ready.connect(begin)
worker_shutting_down.connect(end)
worker_shutdown.connect(leave)
