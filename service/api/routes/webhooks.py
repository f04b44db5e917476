"""Webhooks: who is told of which events, and what has become of what they were told."""

from datetime import datetime
from ipaddress import ip_address
from typing import Annotated, Literal, final

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl

from service import jobs
from service.api.auditing import Auditing
from service.api.dependencies import Installation, Reading, Writing, json_only
from service.api.documented import BODY_REFUSED, NOT_FOUND
from service.api.paging import Limit
from service.api.schemas import Answer, Page
from service.db.session import clock
from service.errors import WebhookRefused
from service.jobs import DeliveryState
from service.lifecycle import EVENT_KINDS
from service.outgoing import may_be_reached
from service.settings import Settings

LARGEST_ID = 2**63 - 1
ENDED = frozenset({"search.succeeded", "search.failed", "search.cancelled"})

router = APIRouter(prefix="/webhooks", tags=["administration"])


def _known(kind: str) -> str:
    if kind not in EVENT_KINDS:
        raise ValueError(f"{kind!r} is no kind of event; choose of {', '.join(EVENT_KINDS)}")
    return kind


Kind = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": [*EVENT_KINDS]})]
Kinds = Annotated[frozenset[Kind], Field(min_length=1)]
Endpoint = Annotated[HttpUrl, Field(max_length=2000)]


@final
class WebhookRequest(BaseModel):
    """Which events, of all searches or of one, an address is to be told of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Endpoint
    kinds: Kinds = ENDED
    search_id: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")] = None


@final
class WebhookChange(BaseModel):
    """What is to be changed; what is not given stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Endpoint | None = None
    kinds: Kinds | None = None
    enabled: bool | None = None


@final
class WebhookAnswer(Answer):
    """A subscription without its secret; if it was disabled, the sentence says why."""

    id: str
    url: str
    kinds: tuple[str, ...]
    search_id: str | None
    enabled: bool
    sentence: str
    failures: int
    created_at: datetime


@final
class NewWebhookAnswer(Answer):
    """A subscription with the secret that its messages are signed with, shown this once."""

    id: str
    secret: str
    url: str
    kinds: tuple[str, ...]
    search_id: str | None
    created_at: datetime


@final
class SecretAnswer(Answer):
    """A new secret, shown this once; for a day, messages carry the former one's signature too."""

    secret: str


@final
class WebhookList(Answer):
    """Every subscription, the oldest first."""

    items: tuple[WebhookAnswer, ...]


@final
class DeliveryAnswer(Answer):
    """One event for this webhook: waiting (until `due_at`), delivered, or given up."""

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


@final
class DeliveryList(Page):
    """Deliveries, those of the newest events first."""

    items: tuple[DeliveryAnswer, ...]


@router.post(
    "",
    status_code=201,
    dependencies=[Depends(json_only)],
    responses=NOT_FOUND | BODY_REFUSED,
)
def create(
    asked: WebhookRequest,
    session: Writing,
    installation: Installation,
    response: Response,
    audit: Auditing,
) -> NewWebhookAnswer:
    """Tell an address of events from now on."""
    made, secret = jobs.add_webhook(
        session,
        url=_reachable(asked.url, installation),
        kinds=asked.kinds,
        search_id=asked.search_id,
        now=clock(session),
    )
    # The whole address may be as good as a password.
    audit.note("webhook.created", made.id, f"{asked.url.host} hears of {', '.join(made.kinds)}")
    response.headers["Location"] = f"/v1/webhooks/{made.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewWebhookAnswer(
        id=made.id,
        secret=secret,
        url=made.url,
        kinds=made.kinds,
        search_id=made.search_id,
        created_at=made.created_at,
    )


@router.get("")
def list_webhooks(session: Reading) -> WebhookList:
    """List the webhooks, disabled ones too."""
    found = jobs.list_webhooks(session)
    return WebhookList(items=tuple(WebhookAnswer.model_validate(one) for one in found))


@router.get("/{webhook_id}", responses=NOT_FOUND)
def get_webhook(webhook_id: str, session: Reading) -> WebhookAnswer:
    """Tell of one webhook."""
    return WebhookAnswer.model_validate(jobs.get_webhook(session, webhook_id))


@router.patch(
    "/{webhook_id}", dependencies=[Depends(json_only)], responses=NOT_FOUND | BODY_REFUSED
)
def change(
    webhook_id: str,
    asked: WebhookChange,
    session: Writing,
    installation: Installation,
    audit: Auditing,
) -> WebhookAnswer:
    """Change a webhook; to enable it again sends what has waited."""
    changed = jobs.change_webhook(
        session,
        webhook_id,
        url=None if asked.url is None else _reachable(asked.url, installation),
        kinds=asked.kinds,
        enabled=asked.enabled,
    )
    audit.note("webhook.changed", webhook_id, ", ".join(sorted(asked.model_fields_set)))
    return WebhookAnswer.model_validate(changed)


@router.delete("/{webhook_id}", status_code=204)
def remove(webhook_id: str, session: Writing, audit: Auditing) -> None:
    """Tell an address nothing more; repeating it is harmless."""
    jobs.remove_webhook(session, webhook_id)
    audit.note("webhook.removed", webhook_id)


@router.post("/{webhook_id}/secret", status_code=201, responses=NOT_FOUND)
def renew_secret(
    webhook_id: str, session: Writing, response: Response, audit: Auditing
) -> SecretAnswer:
    """Draw another secret, valid at once; the former one is for another day."""
    response.headers["Cache-Control"] = "no-store"
    secret = jobs.renew_secret(session, webhook_id, now=clock(session))
    audit.note("webhook.secret_renewed", webhook_id)
    return SecretAnswer(secret=secret)


@router.get("/{webhook_id}/deliveries", responses=NOT_FOUND)
def list_deliveries(
    webhook_id: str,
    session: Reading,
    request: Request,
    state: Literal["WAITING", "DELIVERED", "FAILED"] | None = None,
    before: Annotated[int | None, Query(ge=0, le=LARGEST_ID)] = None,
    limit: Limit = 50,
) -> DeliveryList:
    """List what a webhook was told of, with what became of it."""
    found = jobs.list_deliveries(session, webhook_id, state=state, before=before, limit=limit)
    link = None
    if len(found) == limit:
        url = request.url.include_query_params(before=found[-1].event_id)
        link = f"{url.path}?{url.query}"
    return DeliveryList(items=tuple(DeliveryAnswer.model_validate(one) for one in found), next=link)


@router.post("/{webhook_id}/deliveries/{event_id}/again", status_code=202, responses=NOT_FOUND)
def deliver_again(
    webhook_id: str, event_id: Annotated[int, Field(ge=0, le=LARGEST_ID)], session: Writing
) -> None:
    """Send a message again, delivered or given up."""
    jobs.deliver_again(session, webhook_id, event_id, now=clock(session))


def _reachable(url: HttpUrl, installation: Settings) -> str:
    """The address as text, if it is not one that no message could ever be sent to."""
    if url.username is not None or url.password is not None:
        raise WebhookRefused("an address with a password in it is not kept", field="url")
    try:
        literal = ip_address((url.host or "").strip("[]"))
    except ValueError:
        return str(url)  # what a name leads to is checked at every delivery
    if not may_be_reached(literal, installation.webhook_networks):
        raise WebhookRefused(
            "this address is not public; MATNAS_WEBHOOK_NETWORKS may allow it", field="url"
        )
    return str(url)
