"""Answers that need not be sent again: each with an ETag, and 304 to whoever has it already."""

import hashlib
from collections.abc import Mapping
from typing import Annotated

from fastapi import Header, Response

IfNoneMatch = Annotated[str, Header(max_length=4000)]


def tagged(
    body: str,
    if_none_match: str,
    *,
    lasting: str | None = None,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """Send a body, unless its ETag is known; that is of its `lasting` part, where not all is."""
    digest = hashlib.sha256((body if lasting is None else lasting).encode()).hexdigest()
    # Weak, for what does not last may differ.
    named = {"ETag": f'W/"{digest[:32]}"', **(headers or {})}
    if is_known(named["ETag"], if_none_match):
        return Response(status_code=304, headers=named)
    return Response(body, headers=named, media_type=media_type)


def is_known(tag: str, if_none_match: str) -> bool:
    """Whether the client has it, by the weak comparison of RFC 9110."""
    known = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in known or tag.removeprefix("W/") in known
