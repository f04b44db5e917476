"""The one task: a hint that a trial may wait, which does nothing if it no longer does."""

from typing import Any

from celery import Celery
from opentelemetry.trace import SpanKind

from service import tracing
from service.queue import RUN_TRIAL
from worker.children import Children


def register(app: Celery, children: Children) -> None:
    """Let `app` run trials as processes of `children`."""

    def run_trial(task: Any, trial_id: str) -> None:
        sent_in = getattr(task.request, "traceparent", None)
        with tracing.span(RUN_TRIAL, parent=sent_in, kind=SpanKind.CONSUMER):
            children.run(trial_id)

    app.task(run_trial, name=RUN_TRIAL, bind=True)
