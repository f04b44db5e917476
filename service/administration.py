"""Keys by way of the database: what whoever runs the service may do before there is any key."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sqlalchemy import inspect, make_url

from service import jobs
from service.credentials import Scope
from service.db.session import Database, clock

# Who has a shell and the database needs no key.
OPERATOR = "command line"


def create_key(
    url: str, *, name: str, scopes: Collection[Scope], expires_at: datetime | None
) -> tuple[jobs.KeyView, str]:
    """Make a key; its text is given back here and nowhere else."""
    with _rows(url) as rows, rows.write() as session:
        now = clock(session)
        made, text = jobs.create_key(
            session, name=name, scopes=scopes, expires_at=expires_at, now=now
        )
        may = f"{made.name}, may {', '.join(made.scopes)}"
        jobs.note_act(
            session, action="key.created", subject=made.id, sentence=may, actor=OPERATOR, now=now
        )
        return made, text


def list_keys(url: str) -> tuple[jobs.KeyView, ...]:
    """Every key that ever was."""
    with _rows(url) as rows, rows.read() as session:
        return jobs.list_keys(session)


def revoke_key(url: str, key_id: str) -> jobs.KeyView:
    """Let a key open nothing from now on."""
    with _rows(url) as rows, rows.write() as session:
        now = clock(session)
        revoked = jobs.revoke_key(session, key_id, now=now)
        jobs.note_act(session, action="key.revoked", subject=key_id, actor=OPERATOR, now=now)
        return revoked


def has_usable_key(url: str) -> bool:
    """Whether anybody could use a service that others can reach; asking creates nothing."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        return False
    with _rows(url) as rows:
        if not inspect(rows.engine).has_table("api_keys"):
            return False
        with rows.read() as session:
            return jobs.any_usable_key(session, now=clock(session))


@contextmanager
def _rows(url: str) -> Iterator[Database]:
    rows = Database(url)
    try:
        yield rows
    finally:
        rows.dispose()
