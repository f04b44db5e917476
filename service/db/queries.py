"""Statements that both databases know, but spell in modules of their own."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.db.tables import Base, CounterRow


def insert_or_replace(
    session: Session, table: type[Base], rows: Sequence[dict[str, Any]], *, key: Sequence[str]
) -> None:
    """Insert rows, each of them over the one with the same key if there is one."""
    if not rows:
        return
    statement = _insert(session, table)
    replaced = {name: statement.excluded[name] for name in rows[0] if name not in key}
    session.execute(
        statement.values(list(rows)).on_conflict_do_update(index_elements=key, set_=replaced)
    )


def insert_if_new(
    session: Session, table: type[Base], row: dict[str, Any], *, key: Sequence[str]
) -> bool:
    """Insert a row unless its key is taken; waits for whoever is inserting it just now."""
    statement = _insert(session, table).values(row).on_conflict_do_nothing(index_elements=key)
    column = getattr(table, key[0])
    return session.execute(statement.returning(column)).first() is not None


def add(session: Session, name: str, number: int) -> None:
    """Count so many more under this name."""
    statement = _insert(session, CounterRow).values(name=name, value=number)
    more = CounterRow.value + number
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": more}))


def _insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
