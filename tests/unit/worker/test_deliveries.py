"""The threads that deliver webhooks: at work while the worker is, and no longer."""

import time
from datetime import UTC, datetime
from ipaddress import ip_network

from service import jobs
from service.settings import Settings
from tests.integration.story import Story
from tests.receiving import receiving
from worker import deliveries
from worker.deliveries import Deliveries, patience


def test_a_worker_delivers_while_it_runs(settings: Settings, story: Story) -> None:
    allowing = settings.model_copy(update={"webhook_networks": (ip_network("127.0.0.0/8"),)})
    with receiving() as receiver:
        story.write(
            lambda session: jobs.add_webhook(
                session,
                url=receiver.url,
                kinds={"search.stopping", "search.cancelled"},
                search_id=None,
                now=datetime.now(UTC),
            )
        )
        at_work = Deliveries(allowing, story.database)
        at_work.start()
        story.cancel()
        until = time.monotonic() + 20
        while len(receiver.received) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        at_work.stop()
        for thread in at_work._threads:
            thread.join(10)
            assert not thread.is_alive()


def test_pauses_grow_fourfold_up_to_a_limit(settings: Settings) -> None:
    waits = [patience(settings).after(n, jitter=0.5).total_seconds() for n in range(1, 9)]
    assert waits == [5, 20, 80, 320, 1280, 5120, 20480, 21600]
    assert patience(settings).after(100, jitter=1.0).total_seconds() == 23760
    assert deliveries.POLL_SECONDS <= 1
