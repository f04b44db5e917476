"""Sessions of the pages: somebody showed a key, and is known by a cookie until it runs out."""

from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session

from service.credentials import fingerprint, new_token
from service.db.tables import SessionRow
from service.jobs.keys import KeyView, get_key

LIFETIME = timedelta(hours=12)


def open_session(session: Session, key: KeyView, *, now: datetime) -> str:
    """Begin a session in the name of a key; its token is given back here and nowhere else."""
    session.execute(delete(SessionRow).where(SessionRow.expires_at <= now))
    token = new_token()
    row = SessionRow(
        sha256=fingerprint(token), key_id=key.id, created_at=now, expires_at=now + LIFETIME
    )
    session.add(row)
    return token


def key_of_session(session: Session, token: str, *, now: datetime) -> KeyView | None:
    """The key that a session was opened with, while both are good."""
    row = session.get(SessionRow, fingerprint(token))
    if row is None or row.expires_at <= now:
        return None
    key = get_key(session, row.key_id)
    return key if key.usable(now) else None


def close_session(session: Session, token: str) -> None:
    """End a session, if there is one."""
    session.execute(delete(SessionRow).where(SessionRow.sha256 == fingerprint(token)))
