"""The one task: a hint that a trial may wait, which does nothing if it no longer does."""

from celery import Celery

from service.queue import RUN_TRIAL
from worker.children import Children


def register(app: Celery, children: Children) -> None:
    """Let `app` run trials as processes of `children`."""

    def run_trial(trial_id: str) -> None:
        children.run(trial_id)

    app.task(run_trial, name=RUN_TRIAL)
