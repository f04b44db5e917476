"""A long list, a page at a time: the cursor is opaque, and the link to what follows is ours."""

from typing import Annotated

from fastapi import Request
from pydantic import Field

from service.errors import QueryRefused

MOST = 200
Limit = Annotated[int, Field(ge=1, le=MOST)]
# It holds the value that a page ended at, which may be a name of 200 characters, escaped.
Cursor = Annotated[str | None, Field(max_length=4000)]


async def once_each(request: Request) -> None:
    """Refuse a filter that is given twice, of which only the last would be heard."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise QueryRefused(
                f"{name} is given {names.count(name)} times; it takes one value", field=name
            )


def next_link(request: Request, cursor: str | None) -> str | None:
    """The same question with another cursor."""
    if cursor is None:
        return None
    url = request.url.include_query_params(cursor=cursor)
    return f"{url.path}?{url.query}"
