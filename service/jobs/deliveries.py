"""The outbox of the webhooks: taken by one process at a time, sent, and settled under a fence."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, final

from sqlalchemy import Select, delete, or_, select, update
from sqlalchemy.orm import Session

from service.db.tables import DeliveryRow, EventRow, WebhookRow
from service.jobs.counting import count
from service.outgoing import Message, Outcome, as_json

# Whoever holds a webhook sends this many before another may take it.
BATCH = 50
LONGEST_PAUSE = timedelta(hours=6)
KEPT = timedelta(days=30)
GONE = 410


@final
@dataclass(frozen=True, slots=True)
class Patience:
    """When an endpoint is tried again, and when it is given up."""

    attempts: int
    pause: timedelta
    failures: int

    def after(self, attempts: int, *, jitter: float) -> timedelta:
        """The pause after so many attempts: four times the one before, give or take a tenth."""
        grown: timedelta = self.pause * 4 ** min(attempts - 1, 10)
        return min(grown, LONGEST_PAUSE) * (0.9 + 0.2 * jitter)


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """The right to send one webhook's messages, in the order of their events."""

    webhook_id: str
    fence: int
    messages: tuple[tuple[int, Message], ...]


def any_due(session: Session, *, now: datetime) -> bool:
    """Whether there is anything to send: a look that locks nothing."""
    return session.scalars(_due(now).limit(1)).first() is not None


def take_batch(session: Session, *, now: datetime, lease: timedelta) -> Batch | None:
    """Take the webhook that has waited longest, unless others hold all that have anything due."""
    taken = session.scalars(
        _due(now).limit(1).with_for_update(skip_locked=True, of=WebhookRow)
    ).first()
    if taken is None:
        return None
    webhook = session.get_one(WebhookRow, taken, populate_existing=True)
    webhook.fence += 1
    webhook.free_at = now + lease
    rows = session.execute(
        select(DeliveryRow.event_id, EventRow)
        .join(EventRow, EventRow.id == DeliveryRow.event_id)
        .where(DeliveryRow.webhook_id == webhook.id)
        .where(DeliveryRow.state == "WAITING", DeliveryRow.due_at <= now)
        .order_by(DeliveryRow.event_id)
        .limit(BATCH)
    )
    messages = tuple((event_id, _message(webhook, event, now)) for event_id, event in rows)
    session.flush()
    return Batch(webhook.id, webhook.fence, messages)


def settle(
    session: Session,
    batch: Batch,
    event_id: int,
    outcome: Outcome,
    *,
    patience: Patience,
    now: datetime,
    lease: timedelta,
    jitter: float,
) -> bool:
    """Write what became of one message; False if the rest of the batch is to be left.

    It is after a failure, and if another has taken the webhook meanwhile: then nothing is written.
    """
    webhook = _held(session, batch)
    if webhook is None:
        return False
    key = {"event_id": event_id, "webhook_id": batch.webhook_id}
    delivery = session.get(DeliveryRow, key, populate_existing=True)
    if delivery is None:  # its search has been deleted
        return webhook.enabled
    delivery.attempts += 1
    delivery.status, delivery.sentence = outcome.status, outcome.sentence
    if outcome.delivered:
        delivery.state, delivery.due_at, delivery.ended_at = "DELIVERED", None, now
        webhook.failures, webhook.free_at = 0, now + lease
        count(session, "webhooks_delivered")
        return webhook.enabled
    count(session, "webhooks_failed")
    told = timedelta(seconds=outcome.retry_after or 0.0)
    if delivery.attempts >= patience.attempts:
        delivery.state, delivery.due_at, delivery.ended_at = "FAILED", None, now
    else:
        delivery.due_at = now + max(patience.after(delivery.attempts, jitter=jitter), told)
    webhook.failures += 1
    # Retry-After is said of the whole endpoint, not of one message.
    webhook.free_at = now + told if told else None
    _give_up(webhook, outcome, patience)
    return False


def leave(session: Session, batch: Batch) -> None:
    """Let others take the webhook again, after a batch that has ended well."""
    webhook = _held(session, batch)
    if webhook is not None:
        webhook.free_at = None


def forget_deliveries(session: Session, *, now: datetime) -> None:
    """Forget what was settled a month ago, and what was for webhooks that are gone."""
    session.execute(delete(DeliveryRow).where(DeliveryRow.ended_at < now - KEPT))
    session.execute(delete(DeliveryRow).where(DeliveryRow.webhook_id.not_in(select(WebhookRow.id))))
    expired = update(WebhookRow).where(WebhookRow.former_until < now)
    session.execute(expired.values(former_secret=None, former_until=None))


def _due(now: datetime) -> Select[str]:
    return (
        select(WebhookRow.id)
        .join(DeliveryRow, DeliveryRow.webhook_id == WebhookRow.id)
        .where(DeliveryRow.state == "WAITING", DeliveryRow.due_at <= now, WebhookRow.enabled)
        .where(or_(WebhookRow.free_at.is_(None), WebhookRow.free_at <= now))
        .order_by(DeliveryRow.due_at)
    )


def _held(session: Session, batch: Batch) -> WebhookRow | None:
    row = session.get(WebhookRow, batch.webhook_id, with_for_update=True, populate_existing=True)
    return row if row is not None and row.fence == batch.fence else None


def _give_up(webhook: WebhookRow, outcome: Outcome, patience: Patience) -> None:
    if outcome.status == GONE:
        webhook.sentence = "it answered 410: it wants to hear no more"
    elif webhook.failures >= patience.failures:
        webhook.sentence = f"{webhook.failures} attempts in a row failed: {outcome.sentence}"
    else:
        return
    webhook.enabled = False


def _message(webhook: WebhookRow, event: EventRow, now: datetime) -> Message:
    former = webhook.former_until is not None and webhook.former_until > now
    secrets = (webhook.secret, webhook.former_secret) if former else (webhook.secret,)
    return Message(
        id=f"msg_{webhook.id.removeprefix('hook_')}_{event.id}",
        url=webhook.url,
        body=as_json(_body(event)),
        secrets=tuple(one for one in secrets if one is not None),
    )


def _body(event: EventRow) -> dict[str, Any]:
    return {
        "type": f"{event.kind}.{event.state.lower()}",
        "timestamp": event.at.isoformat(),
        "data": {
            "event_id": event.id,
            "search_id": event.search_id,
            "trial_number": event.trial_number,
            "attempt": event.attempt,
            "kind": event.kind,
            "state": event.state,
            "reason": event.reason,
            "sentence": event.sentence,
            "actor": event.actor,
            "request_id": event.request_id,
            "at": event.at.isoformat(),
            "link": f"/v1/searches/{event.search_id}",
        },
    }
