"""A long list, a page at a time: the cursor is opaque, and the link to what follows is ours."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Request
from pydantic import Field

from service.errors import QueryRefused

MOST = 200
Limit = Annotated[int, Field(ge=1, le=MOST)]
Cursor = Annotated[str | None, Field(max_length=400)]
Item = TypeVar("Item")


def page_from(
    items: Sequence[Item], *, keys: Sequence[int], cursor: str | None, limit: int
) -> tuple[tuple[Item, ...], str | None]:
    """Cut the page that follows the item whose key the cursor holds, and make the next cursor."""
    start = 0
    if cursor is not None:
        start = _place(keys, cursor) + 1
    page = tuple(items[start : start + limit])
    more = start + limit < len(items)
    return page, _encoded(keys[start + limit - 1]) if more else None


def next_link(request: Request, cursor: str | None) -> str | None:
    """The same question with another cursor."""
    if cursor is None:
        return None
    url = request.url.include_query_params(cursor=cursor)
    return f"{url.path}?{url.query}"


def _encoded(key: int) -> str:
    return base64.urlsafe_b64encode(str(key).encode()).decode()


def _place(keys: Sequence[int], cursor: str) -> int:
    try:
        return keys.index(int(base64.urlsafe_b64decode(cursor.encode())))
    except (ValueError, binascii.Error) as error:
        raise QueryRefused("the cursor is not one of ours", field="cursor") from error
