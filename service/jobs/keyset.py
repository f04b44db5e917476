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

from sqlalchemy import ColumnElement, Select, and_, or_

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

    def columns(self) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
        """What a row must be selected with, for the next page's cursor."""
        return self.value, self.unique

    def sorted(self, statement: Select[Any]) -> Select[Any]:
        """The statement in this order."""
        value, unique = self.value, self.unique
        if self.descending:
            value, unique = value.desc(), unique.desc()
        # Said only where it matters, for it keeps PostgreSQL from reading an index in order.
        return statement.order_by(value.nulls_last() if self.nullable else value, unique)

    def after(self, statement: Select[Any], cursor: str) -> Select[Any]:
        """What comes behind the place that a cursor of this order names."""
        value, unique = self._read(cursor)
        further = self.unique < unique if self.descending else self.unique > unique
        if value is None:
            return statement.where(self.value.is_(None), further)
        beyond = self.value < value if self.descending else self.value > value
        behind = or_(beyond, and_(self.value == value, further))
        return statement.where(or_(self.value.is_(None), behind) if self.nullable else behind)

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
            found = None if value is None else _read_as(self.kind, value)
            place = found, _read_as(self.unique_kind, unique)
        except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error) as error:
            raise refused from error
        if name != self.name:
            raise QueryRefused(
                "the cursor is of a list in another order; begin again without it", field="cursor"
            )
        return place


def cut(rows: Sequence[Any], order: Order, limit: int) -> tuple[Sequence[Any], str | None]:
    """Of one row more than the limit make a page and, if it is not the last, its cursor.

    The last two columns of a row are the order's.
    """
    if len(rows) <= limit:
        return rows, None
    *_, value, unique = rows[limit - 1]
    return rows[:limit], order.cursor(value, unique)


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
