"""How a route writes down what it does: in its own transaction, with who asked for it."""

from dataclasses import dataclass
from typing import Annotated, final

from fastapi import Depends
from sqlalchemy.orm import Session

from service import jobs
from service.api.dependencies import RequestId, Writing
from service.api.door import Asking
from service.db.session import clock


@final
@dataclass(frozen=True, slots=True)
class Audit:
    """The acts of one request."""

    session: Session
    actor: str
    request_id: str

    def note(self, action: str, subject: str, sentence: str = "") -> None:
        """Write down one act."""
        jobs.note_act(
            self.session,
            action=action,
            subject=subject,
            sentence=sentence,
            actor=self.actor,
            request_id=self.request_id,
            now=clock(self.session),
        )


async def auditing(session: Writing, asking: Asking, request_id: RequestId) -> Audit:
    """What the routes that administer are given."""
    return Audit(session, asking.label, request_id)


Auditing = Annotated[Audit, Depends(auditing, scope="function")]
