"""API keys: made, listed, revoked; a key's text is in the answer that makes it and in no other."""

from datetime import UTC, datetime
from typing import Annotated, Self, final

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import event

from service import jobs
from service.api.auditing import Auditing
from service.api.dependencies import Reading, Writing, json_only
from service.api.door import OpenDoor
from service.api.schemas import Answer
from service.credentials import Scope
from service.db.session import clock
from service.quota import Quota

router = APIRouter(prefix="/keys", tags=["administration"])


@final
class KeyRequest(BaseModel):
    """What a key is to open, and until when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    expires_at: AwareDatetime | None = None
    # What it says holds instead of the installation's; null is no limit.
    quota: Quota | None = None

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.expires_at is not None and self.expires_at <= datetime.now(UTC):
            raise ValueError("expires_at must be in the future")
        return self


@final
class KeyAnswer(Answer):
    """A key without its secret."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    quota: Quota | None


@final
class NewKeyAnswer(Answer):
    """A key with its text, which is not kept: who loses it makes another."""

    id: str
    key: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    quota: Quota | None


@final
class KeyList(Answer):
    """Every key that ever was, the oldest first."""

    items: tuple[KeyAnswer, ...]


@router.post("", status_code=201, dependencies=[Depends(json_only)])
def create(
    request: Request,
    asked: KeyRequest,
    session: Writing,
    response: Response,
    audit: Auditing,
) -> NewKeyAnswer:
    """Make a key. From the first one on, this server answers nobody without one."""
    made, text = jobs.create_key(
        session,
        name=asked.name,
        scopes=asked.scopes,
        expires_at=asked.expires_at,
        now=clock(session),
        quota=asked.quota,
    )
    audit.note("key.created", made.id, f"{made.name}, may {', '.join(made.scopes)}")
    open_door = OpenDoor.of(request)
    event.listen(session, "after_commit", lambda _: open_door.shut(), once=True)
    response.headers["Location"] = f"/v1/keys/{made.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewKeyAnswer(
        id=made.id,
        key=text,
        name=made.name,
        scopes=made.scopes,
        created_at=made.created_at,
        expires_at=made.expires_at,
        quota=made.quota,
    )


@router.get("")
def list_keys(session: Reading) -> KeyList:
    """List the keys, revoked and expired ones too."""
    return KeyList(items=tuple(KeyAnswer.model_validate(key) for key in jobs.list_keys(session)))


@router.delete("/{key_id}")
def revoke(key_id: str, session: Writing, audit: Auditing) -> KeyAnswer:
    """Let a key open nothing from now on; repeating it is harmless."""
    revoked = jobs.revoke_key(session, key_id, now=clock(session))
    audit.note("key.revoked", key_id)
    return KeyAnswer.model_validate(revoked)
