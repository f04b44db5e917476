"""What a secret looks like, and all that is ever kept of it: its public part and its SHA-256."""

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Literal, final, get_args

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

SECRET_BYTES = 32
# `mtn_<public>_<secret>`: the id of a key is what stands before the secret.
KEY = re.compile(r"(?P<id>mtn_[0-9a-f]{12})_[0-9a-f]{64}")
# As loose as a careless paste: what follows a public part is never shown.
_NEARLY_A_KEY = re.compile(r"(mtn_[0-9a-f]{12})_\w+")
_REDACTED = (
    (_NEARLY_A_KEY, r"\1_***"),
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), r"\1:***@"),  # a password in a URL
    (re.compile(r"\bwhsec_[\w+/=-]+"), "whsec_***"),
    (re.compile(r"(?i)(\bbearer )[\w.~+/=-]+"), r"\1***"),
)


@final
@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as it is shown, once."""

    id: str
    text: str


def new_key() -> NewKey:
    """Draw a key of 256 random bits."""
    key_id = f"mtn_{secrets.token_hex(6)}"
    return NewKey(key_id, f"{key_id}_{secrets.token_hex(SECRET_BYTES)}")


def new_token() -> str:
    """Draw the secret of a session."""
    return secrets.token_urlsafe(SECRET_BYTES)


def new_webhook_secret() -> str:
    """Draw what an endpoint's messages are signed with, as Standard Webhooks writes it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def key_id_of(text: str) -> str | None:
    """The public part of what may be a key."""
    match = KEY.fullmatch(text)
    return match["id"] if match else None


def fingerprint(text: str) -> str:
    """What is stored of a secret; 256 random bits need neither salt nor a slow hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def matches(text: str, stored: str) -> bool:
    """Whether a secret is the one that was stored, in a time that does not depend on it."""
    return hmac.compare_digest(fingerprint(text), stored)


def redacted(text: str) -> str:
    """The same text without the secrets that are known by their looks."""
    for pattern, shown in _REDACTED:
        text = pattern.sub(shown, text)
    return text
