"""What the key that asks has in use, and how much it may."""

from datetime import datetime
from typing import final

from fastapi import APIRouter, Request

from service import jobs
from service.api.dependencies import Installation, Reading
from service.api.door import Asking
from service.api.schemas import Answer
from service.db.session import clock

router = APIRouter(tags=["administration"])


@final
class Allowance(Answer):
    """One quota; a limit that is null does not exist."""

    used: float
    limit: float | None


@final
class Requests(Answer):
    """The rate limit, and how many requests it leaves just now."""

    limit: str | None
    remaining: int | None


@final
class QuotaAnswer(Answer):
    """Everything that is limited; `key` is null where there are no keys."""

    key: str | None
    live_searches: Allowance
    compute_seconds_a_day: Allowance
    artifact_bytes: Allowance
    requests: Requests
    day_ends_at: datetime


@router.get("/quota")
def quota(
    request: Request, session: Reading, installation: Installation, asking: Asking
) -> QuotaAnswer:
    """Tell what is in use in the name of the key that asks, and what its limits are."""
    now = clock(session)
    most = jobs.quota_of(session, asking.key_id, installation.quota)
    used = jobs.usage(session, asking.key_id, now=now)
    rate = request.app.state.rate_limit
    counted = asking.key_id is not None and bool(rate.words)
    return QuotaAnswer(
        key=asking.key_id,
        live_searches=Allowance(used=used.live_searches, limit=most.live_searches),
        compute_seconds_a_day=Allowance(
            used=round(used.compute_seconds_a_day, 1), limit=most.compute_seconds_a_day
        ),
        artifact_bytes=Allowance(used=used.artifact_bytes, limit=most.artifact_bytes),
        requests=Requests(
            limit=rate.words if counted else None,
            remaining=rate.remaining(asking.key_id) if counted else None,
        ),
        day_ends_at=jobs.midnight(now) + jobs.DAY,
    )
