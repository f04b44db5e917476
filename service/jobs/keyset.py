"""Long lists a page at a time: where a page ends is a place among values, not a row of the table.

What became of the row that a page ended with, or whether it still passes the filter, changes
nothing: the next page begins behind its place.
"""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, final

from sqlalchemy import ColumnElement, Select, tuple_
from sqlalchemy.orm import Session

from service.errors import QueryRefused

LARGEST_INTEGER = 2**63 - 1
Value = datetime | str | float | int


@final
@dataclass(frozen=True, slots=True)
class Order:
    """How a list is sorted: by a value of the `kind`, what has none last, then by a unique one."""

    name: str
    value: ColumnElement[Any]
    kind: type[Value]
    unique: ColumnElement[Any]
    unique_kind: type[Value]
    descending: bool = False
    nullable: bool = False

    def page(
        self, session: Session, statement: Select[Any], *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Any], str | None]:
        """The rows from the cursor on, and the next page's cursor, if there is one.

        What has no value is asked for apart, once the rest is at its end: no index that both
        databases have is in the order that puts it last.
        """
        place = None if cursor is None else self._read(cursor)
        wanted, rows = statement.add_columns(self.value, self.unique), list[Any]()
        if place is None or place[0] is not None:
            valued = wanted.where(self.value.is_not(None)) if self.nullable else wanted
            if place is not None:
                # Compared as a pair, for which an index is entered at the right place.
                here = tuple_(self.value, self.unique)
                valued = valued.where(here < place if self.descending else here > place)
            rows += session.execute(self._sorted(valued).limit(limit + 1)).all()
        if self.nullable and len(rows) <= limit:
            rest = wanted.where(self.value.is_(None))
            if place is not None and place[0] is None:
                unique = place[1]
                further = self.unique < unique if self.descending else self.unique > unique
                rest = rest.where(further)
            rows += session.execute(self._sorted(rest).limit(limit + 1 - len(rows))).all()
        if len(rows) <= limit:
            return rows, None
        *_, value, unique = rows[limit - 1]
        return rows[:limit], self.cursor(value, unique)

    def _sorted(self, statement: Select[Any]) -> Select[Any]:
        if self.descending:
            return statement.order_by(self.value.desc(), self.unique.desc())
        return statement.order_by(self.value, self.unique)

    def cursor(self, value: Value | None, unique: Value) -> str:
        """The place of a row."""
        text = json.dumps([self.name, _written(value), unique])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def _read(self, cursor: str) -> tuple[Value | None, Value]:
        refused = QueryRefused("the cursor is not one of ours", field="cursor")
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            name, value, unique = json.loads(
                base64.b64decode(padded.encode(), b"-_", validate=True)
            )
            if name != self.name and isinstance(name, str):
                raise QueryRefused(
                    f"the cursor is of a list sorted by {name}, and this one is by {self.name}: "
                    "keep the order, or begin again without it",
                    field="cursor",
                )
            found = None if value is None else _read_as(self.kind, value)
            place = found, _read_as(self.unique_kind, unique)
        except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error) as error:
            raise refused from error
        return place


def _written(value: Value | None) -> str | float | int | None:
    return value.isoformat() if isinstance(value, datetime) else value


def _read_as(kind: type[Value], value: object) -> Value:
    """Take nothing from a client that the database could not compare."""
    if kind is datetime and isinstance(value, str):
        return datetime.fromisoformat(value).astimezone(UTC)
    if kind is float and isinstance(value, float | int) and math.isfinite(value):
        return float(value)
    if kind is int and type(value) is int and abs(value) <= LARGEST_INTEGER:
        return value
    if kind is str and isinstance(value, str) and "\0" not in value:
        value.encode()  # a surrogate is text for nobody
        return value
    raise ValueError("a cursor holds another kind of value")
