"""Statements that both databases know, but spell in modules of their own."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

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


class JsonRows(FunctionElement[Any]):
    """The rows of a subquery as one value, a JSON list of lists."""

    type = JSON()
    inherit_cache = True


@compiles(JsonRows, "sqlite")
def _in_sqlite(element: JsonRows, compiler: SQLCompiler, **how: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **how)}))"


@compiles(JsonRows, "postgresql")
def _in_postgres(element: JsonRows, compiler: SQLCompiler, **how: Any) -> str:
    return f"json_agg(json_build_array({compiler.process(element.clauses, **how)}))"


def moment_in_json(text: str | None) -> datetime | None:
    """Read a moment that came within JSON, where SQLite writes no zone."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
