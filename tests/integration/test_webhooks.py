"""What a webhook is promised, kept on both databases towards real receivers."""

import json
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, final

import pytest
from sqlalchemy import text
from standardwebhooks import Webhook

from service import jobs
from service.db.session import Database
from service.jobs import DeliveryView
from service.outgoing import Outcome
from service.settings import Settings
from tests.integration.story import REFERENCE, Story
from tests.receiving import Receiver, receiving
from worker.deliveries import deliver

LOOPBACK: Any = ["127.0.0.0/8"]
ENDED = {"search.succeeded", "search.failed", "search.cancelled"}


@final
class Hooked:
    """A search whose events go to receivers, and the hand that sends them."""

    def __init__(self, database: Database, home: Path, **choices: Any) -> None:
        self.database = database
        usual: dict[str, Any] = {"webhook_networks": LOOPBACK, "webhook_retry_seconds": 0.001}
        self.settings = Settings(home=home, **(usual | choices))
        self.story = Story(database)

    def subscribe(
        self, receiver: Receiver, kinds: Collection[str] = ENDED, search_id: str | None = None
    ) -> tuple[str, str]:
        made, secret = self.story.write(
            lambda session: jobs.add_webhook(
                session, url=receiver.url, kinds=kinds, search_id=search_id, now=datetime.now(UTC)
            )
        )
        return made.id, secret

    def deliver(self) -> bool:
        return deliver(self.settings, self.database)

    def deliver_all(self) -> None:
        until = datetime.now(UTC) + timedelta(seconds=30)
        while any(one.state == "WAITING" for one in self.deliveries()):
            self.deliver()
            assert datetime.now(UTC) < until

    def deliveries(self, webhook_id: str | None = None) -> tuple[DeliveryView, ...]:
        with self.database.read() as session:
            ids = [one.id for one in jobs.list_webhooks(session)]
            found = [jobs.list_deliveries(session, one) for one in ids if webhook_id in {None, one}]
        return tuple(one for each in found for one in each)

    def webhook(self, webhook_id: str) -> jobs.WebhookView:
        with self.database.read() as session:
            return jobs.get_webhook(session, webhook_id)


@pytest.fixture
def hooked(database: Database, tmp_path: Path) -> Hooked:
    return Hooked(database, tmp_path)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


def types(receiver: Receiver) -> list[str]:
    return [json.loads(one.body)["type"] for one in receiver.received]


def header(headers: Mapping[str, str], name: str) -> str:
    return {key.lower(): value for key, value in headers.items()}[name]


def test_what_is_sent_is_what_standard_webhooks_verifies(
    hooked: Hooked, receiver: Receiver
) -> None:
    _, secret = hooked.subscribe(receiver)
    hooked.story.cancel()
    assert hooked.deliver()
    (got,) = receiver.received
    headers = {name.lower(): value for name, value in got.headers.items()}
    verified = Webhook(secret).verify(got.body, headers)
    assert verified["type"] == "search.cancelled"
    event = hooked.story.events[-1]
    assert verified["data"]["event_id"] == event.id
    assert verified["data"]["search_id"] == hooked.story.id
    assert verified["data"]["request_id"] == "request-2"
    assert got.path == "/hook"
    (told,) = hooked.deliveries()
    assert (told.state, told.status, told.attempts) == ("DELIVERED", 204, 1)
    assert not hooked.deliver()


def test_a_webhook_hears_of_the_kinds_and_the_search_that_it_asked_for(
    hooked: Hooked, receiver: Receiver
) -> None:
    hooked.subscribe(receiver, {"trial.running", "trial.complete"}, hooked.story.id)
    Story(hooked.database).run(REFERENCE)
    hooked.story.run(REFERENCE)
    hooked.deliver_all()
    assert types(receiver) == ["trial.running", "trial.complete"]
    assert {json.loads(one.body)["data"]["search_id"] for one in receiver.received} == {
        hooked.story.id
    }


def test_what_is_rolled_back_is_told_to_nobody(hooked: Hooked, receiver: Receiver) -> None:
    hooked.subscribe(receiver)

    def fail() -> None:
        with hooked.database.write() as session:
            jobs.cancel(session, hooked.story.id, hooked.story.asked())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hooked.deliveries() == ()


def test_a_failure_is_tried_again_with_the_same_id_and_another_time(hooked: Hooked) -> None:
    with receiving((500, {}), (503, {}), (200, {})) as receiver:
        hooked.subscribe(receiver)
        hooked.story.cancel()
        hooked.deliver_all()
    assert len(receiver.received) == 3
    assert len({header(one.headers, "webhook-id") for one in receiver.received}) == 1
    (told,) = hooked.deliveries()
    assert (told.state, told.attempts, told.status) == ("DELIVERED", 3, 200)


def test_retry_after_holds_the_whole_endpoint(hooked: Hooked) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for told in ("3600", later):
        with receiving((429, {"Retry-After": told})) as receiver:
            webhook_id, _ = hooked.subscribe(receiver, {"trial.running", "trial.complete"})
            Story(hooked.database).run(REFERENCE)
            assert hooked.deliver()
            assert not hooked.deliver()
        assert len(receiver.received) == 1
        second, first = hooked.deliveries(webhook_id)
        assert first.due_at is not None
        assert timedelta(minutes=59) < first.due_at - datetime.now(UTC) < timedelta(minutes=61)
        assert (second.state, second.attempts) == ("WAITING", 0)
        hooked.story.write(
            lambda session, webhook_id=webhook_id: jobs.remove_webhook(session, webhook_id)  # type: ignore[misc]
        )


def test_there_is_a_limit_and_a_way_to_begin_again(database: Database, tmp_path: Path) -> None:
    hooked = Hooked(database, tmp_path, webhook_attempts=3)
    with receiving((500, {}), (500, {}), (500, {}), (200, {})) as receiver:
        webhook_id, _ = hooked.subscribe(receiver)
        hooked.story.cancel()
        hooked.deliver_all()
        (told,) = hooked.deliveries()
        assert (told.state, told.attempts, told.sentence) == ("FAILED", 3, "it answered 500")
        hooked.story.write(
            lambda session: jobs.deliver_again(
                session, webhook_id, told.event_id, now=datetime.now(UTC)
            )
        )
        hooked.deliver_all()
    assert hooked.deliveries()[0].state == "DELIVERED"


def test_an_endpoint_that_only_fails_is_disabled_and_goes_on_when_enabled(
    database: Database, tmp_path: Path
) -> None:
    hooked = Hooked(database, tmp_path, webhook_failures=4)
    with receiving(*[(500, {})] * 4, (200, {})) as receiver:
        webhook_id, _ = hooked.subscribe(receiver)
        hooked.story.cancel()
        until = datetime.now(UTC) + timedelta(seconds=30)
        while hooked.webhook(webhook_id).enabled:
            hooked.deliver()
            assert datetime.now(UTC) < until
        assert hooked.webhook(webhook_id).sentence == (
            "4 attempts in a row failed: it answered 500"
        )
        assert not hooked.deliver()
        Story(hooked.database).cancel()  # of what happens meanwhile it is not told
        hooked.story.write(lambda session: jobs.change_webhook(session, webhook_id, enabled=True))
        hooked.deliver_all()
    assert len(receiver.received) == 5
    assert [one.state for one in hooked.deliveries()] == ["DELIVERED"]


def test_who_is_gone_is_asked_no_more(hooked: Hooked) -> None:
    with receiving((410, {})) as receiver:
        webhook_id, _ = hooked.subscribe(receiver)
        hooked.story.cancel()
        hooked.deliver()
    assert not hooked.webhook(webhook_id).enabled


def test_a_redirect_is_not_followed(hooked: Hooked, receiver: Receiver) -> None:
    with receiving((307, {"Location": receiver.url})) as first:
        hooked.subscribe(first)
        hooked.story.cancel()
        hooked.deliver()
    assert receiver.received == []
    assert hooked.deliveries()[0].sentence == "it answered 307, and redirects are not followed"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"])
def test_nothing_here_is_reached_without_permission(
    sqlite_url: str, tmp_path: Path, receiver: Receiver, host: str
) -> None:
    database = Database(sqlite_url)
    hooked = Hooked(database, tmp_path, webhook_networks=())
    receiver.url = receiver.url.replace("127.0.0.1", host)
    hooked.subscribe(receiver)
    hooked.story.cancel()
    assert hooked.deliver()
    assert receiver.received == []
    assert "not public" in hooked.deliveries()[0].sentence
    database.dispose()


def test_an_endpoint_that_trickles_has_no_more_time_than_others(
    sqlite_url: str, tmp_path: Path
) -> None:
    database = Database(sqlite_url)
    hooked = Hooked(database, tmp_path, webhook_seconds=0.4)
    with receiving(trickle=True) as receiver:
        hooked.subscribe(receiver)
        hooked.story.cancel()
        assert hooked.deliver()
    assert len(receiver.received) == 1
    assert hooked.deliveries()[0].sentence == "no answer in 0.4 s"
    database.dispose()


def test_what_a_killed_worker_left_is_sent_by_another_and_settled_once(
    hooked: Hooked, receiver: Receiver
) -> None:
    hooked.subscribe(receiver)
    hooked.story.cancel()
    now, lease = datetime.now(UTC), timedelta(seconds=70)
    first = hooked.story.write(lambda session: jobs.take_batch(session, now=now, lease=lease))
    assert first is not None
    assert not hooked.deliver()  # the first still has it
    hooked.story.write(
        lambda session: session.execute(
            text("UPDATE webhooks SET free_at = :then"),
            {"then": (now - lease).replace(tzinfo=None)},
        )
    )
    assert hooked.deliver()
    with hooked.database.write() as session:
        ((event_id, _),) = first.messages
        late = jobs.settle(
            session,
            first,
            event_id,
            Outcome(delivered=False, status=500, sentence="late"),
            patience=jobs.Patience(1, lease, 1),
            now=now,
            lease=lease,
            jitter=0.5,
        )
    assert not late
    (told,) = hooked.deliveries()
    assert (told.state, told.attempts) == ("DELIVERED", 1)


def test_messages_go_out_in_the_order_of_their_events(hooked: Hooked, receiver: Receiver) -> None:
    hooked.subscribe(receiver, {"trial.running", "trial.complete", "search.running"})
    hooked.story.run(REFERENCE, 1, 2)
    hooked.deliver_all()
    ids = [json.loads(one.body)["data"]["event_id"] for one in receiver.received]
    assert len(ids) == 7
    assert ids == sorted(ids)


def test_a_new_secret_signs_beside_the_former_one_for_a_day(
    hooked: Hooked, receiver: Receiver
) -> None:
    webhook_id, first = hooked.subscribe(receiver)
    second = hooked.story.write(
        lambda session: jobs.renew_secret(session, webhook_id, now=datetime.now(UTC))
    )
    hooked.story.cancel()
    hooked.deliver()
    (got,) = receiver.received
    headers = {name.lower(): value for name, value in got.headers.items()}
    for secret in (first, second):
        assert Webhook(secret).verify(got.body, headers)


def test_deliveries_are_forgotten_with_their_search_their_webhook_or_after_a_month(
    hooked: Hooked, receiver: Receiver
) -> None:
    webhook_id, _ = hooked.subscribe(receiver)
    hooked.story.cancel()
    hooked.deliver()
    then = datetime.now(UTC) + timedelta(days=31)
    hooked.story.write(lambda session: jobs.forget_deliveries(session, now=then))
    assert hooked.deliveries() == ()
    hooked.story.write(lambda session: jobs.remove_webhook(session, webhook_id))
    Story(hooked.database).cancel()
    with hooked.database.read() as session:
        assert jobs.list_webhooks(session) == ()
        assert not jobs.any_due(session, now=then)
