"""What was answered to an Idempotency-Key, so that a repeated request does nothing again."""

from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service.db.queries import insert_if_new
from service.db.tables import AnswerRow
from service.errors import IdempotencyConflict, IdempotencyInFlight
from service.jobs.views import StoredAnswer


def recall(session: Session, key: str, *, body_sha256: str, now: datetime) -> StoredAnswer | None:
    """Take the key for this transaction, or give the answer that it already has.

    Whoever asks while the first request is being answered is told so.
    """
    if not _is_alone(session, key):
        raise IdempotencyInFlight("the first request with this Idempotency-Key is being answered")
    row = {"key": key, "body_sha256": body_sha256, "created_at": now}
    if insert_if_new(session, AnswerRow, row, key=["key"]):
        return None
    taken = session.scalars(select(AnswerRow).where(AnswerRow.key == key)).one()
    if taken.body_sha256 != body_sha256:
        raise IdempotencyConflict("this Idempotency-Key came with another body before")
    if taken.status is None or taken.answer is None:
        raise IdempotencyConflict("the first request with this Idempotency-Key was not answered")
    return StoredAnswer(taken.status, taken.answer)


def remember(session: Session, key: str, *, status: int, answer: dict[str, Any]) -> None:
    """Keep the answer with its key, in the transaction that took it."""
    session.execute(
        update(AnswerRow).where(AnswerRow.key == key).values(status=status, answer=answer)
    )


def _is_alone(session: Session, key: str) -> bool:
    """Whether no other open transaction has taken the key; SQLite has one at a time."""
    if session.get_bind().dialect.name != "postgresql":
        return True
    lock = func.pg_try_advisory_xact_lock(func.hashtextextended(key, 0))
    return bool(session.execute(select(lock)).scalar_one())
