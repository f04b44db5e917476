"""What clients know of already: an ETag, 304 to whoever has it, 412 to whoever has it no longer."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Annotated

from fastapi import Header, Response

from service.errors import Changed

IfNoneMatch = Annotated[str, Header(max_length=4000)]
IfMatch = Annotated[str, Header(max_length=4000)]


def tagged(
    body: str,
    if_none_match: str,
    *,
    lasting: str | None = None,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """Send a body, unless its ETag is known; that is of its `lasting` part, where not all is."""
    named = {"ETag": tag_of(body if lasting is None else lasting), **(headers or {})}
    if is_known(named["ETag"], if_none_match):
        return Response(status_code=304, headers=named)
    return Response(body, headers=named, media_type=media_type)


def tag_of(lasting: str) -> str:
    """The ETag of what lasts; weak, for what does not last may differ."""
    return f'W/"{hashlib.sha256(lasting.encode()).hexdigest()[:32]}"'


def check_match(tag: str, if_match: str) -> None:
    """Refuse to change what the client has seen otherwise.

    By the weak comparison, for these tags are weak: what they leave out, nobody decides by.
    """
    if if_match and not is_known(tag, if_match):
        sentence = f"it is not what it was at If-Match: its ETag is {tag} now"
        raise Changed(f"{sentence}; look again, and decide again")


def repr_digest(sha256: str) -> str:
    """The checksum of a whole file, as RFC 9530 writes it."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def is_known(tag: str, if_none_match: str) -> bool:
    """Whether the client has it, by the weak comparison of RFC 9110."""
    known = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return "*" in known or tag.removeprefix("W/") in known
