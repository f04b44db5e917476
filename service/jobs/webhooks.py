"""Who wants to be told of events: subscriptions, and what each has been told so far."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, cast, final
from uuid import uuid4

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from service.credentials import new_webhook_secret as new_secret
from service.db.tables import DeliveryRow, EventRow, SearchRow, WebhookRow
from service.errors import DeliveryNotFound, SearchNotFound, WebhookNotFound

DeliveryState = Literal["WAITING", "DELIVERED", "FAILED"]
# Whoever checks signatures has this long to learn of a new secret.
FORMER_SECRET_LASTS = timedelta(days=1)
LISTENING = "matnas_webhooks"


@final
@dataclass(frozen=True, slots=True)
class WebhookView:
    """A subscription, without its secret."""

    id: str
    url: str
    kinds: tuple[str, ...]
    search_id: str | None
    enabled: bool
    sentence: str
    failures: int
    created_at: datetime


@final
@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One event that an endpoint is, was or could not be told of."""

    event_id: int
    type: str
    search_id: str
    trial_number: int | None
    state: DeliveryState
    attempts: int
    status: int | None
    sentence: str
    created_at: datetime
    due_at: datetime | None
    ended_at: datetime | None


def add_webhook(
    session: Session, *, url: str, kinds: Collection[str], search_id: str | None, now: datetime
) -> tuple[WebhookView, str]:
    """Subscribe an address to events from now on; its secret is given back here and never again."""
    if search_id is not None and session.get(SearchRow, search_id) is None:
        raise SearchNotFound(search_id)
    row = WebhookRow(
        id=f"hook_{uuid4().hex}",
        url=url,
        kinds=sorted(kinds),
        search_id=search_id,
        enabled=True,
        sentence="",
        failures=0,
        secret=new_secret(),
        fence=0,
        created_at=now,
    )
    session.add(row)
    session.flush()
    session.info.pop(LISTENING, None)
    return _view(row), row.secret


def get_webhook(session: Session, webhook_id: str) -> WebhookView:
    """One subscription, or WebhookNotFound."""
    return _view(_row(session, webhook_id))


def list_webhooks(session: Session) -> tuple[WebhookView, ...]:
    """Every subscription, the oldest first."""
    rows = session.scalars(select(WebhookRow).order_by(WebhookRow.created_at, WebhookRow.id))
    return tuple(_view(row) for row in rows)


def change_webhook(
    session: Session,
    webhook_id: str,
    *,
    url: str | None = None,
    kinds: Collection[str] | None = None,
    enabled: bool | None = None,
) -> WebhookView:
    """Change what is given; to enable it forgets its failures, and what waited goes on."""
    row = _row(session, webhook_id, lock=True)
    if url is not None:
        row.url = url
    if kinds is not None:
        row.kinds = sorted(kinds)
    if enabled is not None:
        row.enabled, row.failures = enabled, 0
        row.sentence = "" if enabled else "it was disabled by a client"
        row.free_at = None
    session.flush()
    session.info.pop(LISTENING, None)
    return _view(row)


def renew_secret(session: Session, webhook_id: str, *, now: datetime) -> str:
    """Draw another secret; for a day, messages are signed with the former one, too."""
    row = _row(session, webhook_id, lock=True)
    row.former_secret, row.former_until = row.secret, now + FORMER_SECRET_LASTS
    row.secret = new_secret()
    session.flush()
    return row.secret


def remove_webhook(session: Session, webhook_id: str) -> None:
    """Tell it nothing more, and forget what it was told; repeating it is harmless."""
    session.execute(delete(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id))
    session.execute(delete(WebhookRow).where(WebhookRow.id == webhook_id))
    session.info.pop(LISTENING, None)


def list_deliveries(
    session: Session,
    webhook_id: str,
    *,
    state: DeliveryState | None = None,
    before: int | None = None,
    limit: int = 50,
) -> tuple[DeliveryView, ...]:
    """What a webhook was told of, the newest event first, from below the event `before`."""
    _row(session, webhook_id)
    statement = (
        select(DeliveryRow, EventRow)
        .join(EventRow, EventRow.id == DeliveryRow.event_id)
        .where(DeliveryRow.webhook_id == webhook_id)
        .order_by(DeliveryRow.event_id.desc())
        .limit(limit)
    )
    if state is not None:
        statement = statement.where(DeliveryRow.state == state)
    if before is not None:
        statement = statement.where(DeliveryRow.event_id < before)
    return tuple(_delivery(row, event) for row, event in session.execute(statement))


def deliver_again(session: Session, webhook_id: str, event_id: int, *, now: datetime) -> None:
    """Send a message again, however the attempts before have ended."""
    _row(session, webhook_id)
    again = (
        update(DeliveryRow)
        .where(DeliveryRow.webhook_id == webhook_id, DeliveryRow.event_id == event_id)
        .values(state="WAITING", attempts=0, due_at=now, ended_at=None)
        .returning(DeliveryRow.event_id)
    )
    if session.execute(again).first() is None:
        raise DeliveryNotFound(event_id)


def announce(session: Session, event_id: int, *, kind: str, search_id: str, now: datetime) -> None:
    """Put an event into the outbox of everyone who wants it, in the event's own transaction."""
    listening = session.info.get(LISTENING)
    if listening is None:
        enabled = select(WebhookRow).where(WebhookRow.enabled)
        listening = session.info[LISTENING] = [_view(row) for row in session.scalars(enabled)]
    for webhook in listening:
        if kind in webhook.kinds and webhook.search_id in {None, search_id}:
            session.execute(
                insert(DeliveryRow).values(
                    event_id=event_id,
                    webhook_id=webhook.id,
                    state="WAITING",
                    attempts=0,
                    due_at=now,
                    sentence="",
                    created_at=now,
                )
            )


def _row(session: Session, webhook_id: str, *, lock: bool = False) -> WebhookRow:
    row = session.get(WebhookRow, webhook_id, with_for_update=lock, populate_existing=True)
    if row is None:
        raise WebhookNotFound(webhook_id)
    return row


def _view(row: WebhookRow) -> WebhookView:
    return WebhookView(
        id=row.id,
        url=row.url,
        kinds=tuple(row.kinds),
        search_id=row.search_id,
        enabled=row.enabled,
        sentence=row.sentence,
        failures=row.failures,
        created_at=row.created_at,
    )


def _delivery(row: DeliveryRow, event: EventRow) -> DeliveryView:
    return DeliveryView(
        event_id=row.event_id,
        type=f"{event.kind}.{event.state.lower()}",
        search_id=event.search_id,
        trial_number=event.trial_number,
        state=cast("DeliveryState", row.state),
        attempts=row.attempts,
        status=row.status,
        sentence=row.sentence,
        created_at=row.created_at,
        due_at=row.due_at,
        ended_at=row.ended_at,
    )
