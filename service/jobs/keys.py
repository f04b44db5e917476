"""API keys: made, shown, revoked, and asked whether they are good."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import cast, final

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from service.credentials import SCOPES, Scope, fingerprint, key_id_of, matches, new_key
from service.db.tables import KeyRow, SessionRow
from service.errors import KeyNotFound, KeyRefused
from service.quota import Quota

# What a presented secret is compared with where there is no such key: both take the same time.
NO_KEY = fingerprint("")


@final
@dataclass(frozen=True, slots=True)
class KeyView:
    """A key without its secret, which nobody has but whoever was shown it."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    quota: Quota | None

    def usable(self, now: datetime) -> bool:
        """Whether it still opens anything."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@final
@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: a key, or whoever is on this machine while there are no keys.

    A key may be known by a session, which ends before it.
    """

    key_id: str | None
    scopes: frozenset[Scope]
    session_sha256: str | None = None

    @property
    def label(self) -> str:
        """What events say of who did it."""
        return "client" if self.key_id is None else f"key {self.key_id}"


ANYBODY = Actor(None, frozenset(SCOPES))


def create_key(
    session: Session,
    *,
    name: str,
    scopes: Collection[Scope],
    expires_at: datetime | None,
    now: datetime,
    quota: Quota | None = None,
) -> tuple[KeyView, str]:
    """Make a key; its text is given back here and nowhere else."""
    made = new_key()
    row = KeyRow(
        id=made.id,
        name=name,
        scopes=[scope for scope in SCOPES if scope in scopes],
        sha256=fingerprint(made.text),
        quota=None if quota is None else quota.model_dump(exclude_unset=True),
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return _view(row), made.text


def get_key(session: Session, key_id: str) -> KeyView:
    """One key, or KeyNotFound."""
    row = session.get(KeyRow, key_id)
    if row is None:
        raise KeyNotFound(key_id)
    return _view(row)


def list_keys(session: Session) -> tuple[KeyView, ...]:
    """Every key that ever was, the oldest first."""
    rows = session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))
    return tuple(_view(row) for row in rows)


def revoke_key(session: Session, key_id: str, *, now: datetime) -> KeyView:
    """Let a key open nothing from now on; repeating it is harmless."""
    first = update(KeyRow).where(KeyRow.id == key_id, KeyRow.revoked_at.is_(None))
    session.execute(first.values(revoked_at=now))
    row = session.get(KeyRow, key_id, populate_existing=True)
    if row is None:
        raise KeyNotFound(key_id)
    return _view(row)


def any_key(session: Session) -> bool:
    """Whether there ever was a key: rows stay, so a door that was shut does not open by itself."""
    return session.scalar(select(KeyRow.id).limit(1)) is not None


def any_usable_key(session: Session, *, now: datetime) -> bool:
    """Whether somebody could open the door with a key."""
    lasting = or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > now)
    usable = select(KeyRow.id).where(KeyRow.revoked_at.is_(None), lasting).limit(1)
    return session.scalar(usable) is not None


def still_let_in(session: Session, actor: Actor, *, now: datetime) -> bool:
    """Whether who was let in would be let in again."""
    if actor.key_id is None:
        return not any_key(session)
    if actor.session_sha256 is not None:
        shown = session.get(SessionRow, actor.session_sha256)
        if shown is None or shown.expires_at <= now:
            return False
    row = session.get(KeyRow, actor.key_id)
    return row is not None and _view(row).usable(now)


def key_of(session: Session, text: str, *, now: datetime) -> KeyView:
    """The key that was presented, or KeyRefused."""
    key_id = key_id_of(text)
    row = session.get(KeyRow, key_id) if key_id is not None else None
    if not matches(text, NO_KEY if row is None else row.sha256) or row is None:
        raise KeyRefused("this is no key of this server")
    return checked(_view(row), now=now)


def checked(key: KeyView, *, now: datetime) -> KeyView:
    """Return a key that may be used now; only its holder learns why not."""
    if key.revoked_at is not None:
        raise KeyRefused(f"the key {key.id} has been revoked; ask for another")
    if not key.usable(now):
        raise KeyRefused(f"the key {key.id} has expired; ask for another")
    return key


def _view(row: KeyRow) -> KeyView:
    return KeyView(
        id=row.id,
        name=row.name,
        scopes=cast("tuple[Scope, ...]", tuple(row.scopes)),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        quota=None if row.quota is None else Quota.model_validate(row.quota),
    )
