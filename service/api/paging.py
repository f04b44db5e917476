"""A long list, a page at a time: the cursor is opaque, and the link to what follows is ours."""

from typing import Annotated

from fastapi import Request
from pydantic import Field

MOST = 200
Limit = Annotated[int, Field(ge=1, le=MOST)]
# It holds the value that a page ended at, which may be a name of 200 characters, escaped.
Cursor = Annotated[str | None, Field(max_length=4000)]


def next_link(request: Request, cursor: str | None) -> str | None:
    """The same question with another cursor."""
    if cursor is None:
        return None
    url = request.url.include_query_params(cursor=cursor)
    return f"{url.path}?{url.query}"
