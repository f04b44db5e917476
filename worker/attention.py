"""Celery's loop looks for a free slot often, where Redis is the broker."""

from typing import Any, final

from celery import bootsteps

# A trial that ends in its thread does not wake the loop, which else looks once a second.
LOOK_SECONDS = 0.1


@final
class Attention(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery tells no types
    """A step of the consumer, begun anew with each connection to the broker."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **given: Any) -> None:
        super().__init__(consumer, **given)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Let the loop turn; the folders' loop polls by itself."""
        if consumer.hub is not None:
            self._timer = consumer.hub.call_repeatedly(LOOK_SECONDS, _nothing)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002  (Celery's signature)
        """Leave no timer to the next connection."""
        if self._timer is not None:
            self._timer.cancel()


def _nothing() -> None:
    pass
