"""How searches are doing, as JSON: what is polled for, and what streams tell."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import final

from sqlalchemy.orm import Session

from service import jobs
from service.api.schemas import SearchAnswer
from service.db.session import clock


@final
@dataclass(frozen=True, slots=True)
class Status:
    """How a search is doing: whole, without the estimate, and whether anything may still happen."""

    body: str
    lasting: str
    live: bool


def read_statuses(session: Session, search_ids: Collection[str]) -> Mapping[str, Status]:
    """Read how many searches are doing; those that are not there have none."""
    found = {}
    for view in jobs.get_searches(session, search_ids, now=clock(session)):
        answer = SearchAnswer.model_validate(view)
        found[view.id] = Status(answer.model_dump_json(), lasting(answer), view.live)
    return found


def lasting(answer: SearchAnswer) -> str:
    """What an ETag is of: all but the estimate, which moves with the clock."""
    return answer.model_dump_json(exclude={"progress": {"eta_seconds"}})
