"""What administrators and deletions have changed: acts that no event of a search tells of."""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import final

from sqlalchemy import event, insert, select
from sqlalchemy.orm import Session

from service.db.tables import AuditRow

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class ActView:
    """Who did what, to what, and on which request."""

    id: int
    action: str
    subject: str
    sentence: str
    actor: str
    request_id: str | None
    at: datetime


def note_act(
    session: Session,
    *,
    action: str,
    subject: str,
    sentence: str = "",
    actor: str,
    request_id: str | None = None,
    now: datetime,
) -> None:
    """Write an act down in the transaction that does it, and log it once it is done."""
    told = {"action": action, "subject": subject, "actor": actor, "request_id": request_id}
    session.execute(insert(AuditRow).values(**told, sentence=sentence, at=now))
    said = f"{action} {subject}, by {actor}" + (f": {sentence}" if sentence else "")
    event.listen(session, "after_commit", lambda _: log.info("%s", said), once=True)


def list_acts(
    session: Session, *, before: int | None = None, limit: int = 50
) -> tuple[ActView, ...]:
    """List acts, the newest first, from below the act `before`."""
    statement = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(AuditRow.id < before)
    return tuple(
        ActView(
            id=row.id,
            action=row.action,
            subject=row.subject,
            sentence=row.sentence,
            actor=row.actor,
            request_id=row.request_id,
            at=row.at,
        )
        for row in session.scalars(statement)
    )
