"""Messages to other people's servers: signed, to addresses that may be reached, in bounded time."""

import base64
import hashlib
import hmac
import json
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from importlib.metadata import version
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from time import monotonic
from typing import Any, final

import httpcore

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_RETRY_AFTER = 86_400.0
USER_AGENT = f"matnas/{version('matnas')}"
# Through these, an IPv6 address stands for an IPv4 one.
NAT64 = ip_network("64:ff9b::/96")


@final
class AddressRefused(Exception):
    """The endpoint's name leads to an address that this installation does not reach out to."""


@final
@dataclass(frozen=True, slots=True)
class Message:
    """One message, the same however often it is sent."""

    id: str
    url: str
    body: bytes
    secrets: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of sending it: `retry_after` are the seconds that the receiver asked for."""

    delivered: bool
    status: int | None
    sentence: str
    retry_after: float | None = None


def signature(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """HMAC-SHA256 over `id.timestamp.body`, as Standard Webhooks wants it."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def may_be_reached(address: Address, allowed: Iterable[Network]) -> bool:
    """Whether an address is public, or in a network that the installation allows."""
    meant = _meant(address)
    if any(meant in network for network in allowed if network.version == meant.version):
        return True
    local = isinstance(meant, IPv6Address) and meant.is_site_local
    return meant.is_global and not (meant.is_multicast or meant.is_reserved or local)


def send(
    message: Message, *, now: datetime, seconds: float, allowed: Sequence[Network] = ()
) -> Outcome:
    """Send a message once; `seconds` bound all of it, but for the name's look-up."""
    timestamp = int(now.timestamp())
    signatures = " ".join(
        signature(secret, message_id=message.id, timestamp=timestamp, body=message.body)
        for secret in message.secrets
    )
    headers = {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": message.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures,
    }
    backend = _Guarded(allowed, until=monotonic() + seconds)
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
    try:
        # No proxy and no redirect: what is connected to is what was checked.
        with (
            httpcore.ConnectionPool(ssl_context=_tls(), network_backend=backend) as pool,
            pool.stream(
                "POST",
                message.url,
                headers=list(headers.items()),
                content=message.body,
                extensions={"timeout": timeouts},
            ) as response,
        ):
            return _outcome(response, now)
    except AddressRefused as error:
        return Outcome(delivered=False, status=None, sentence=str(error))
    except httpcore.TimeoutException:
        return Outcome(delivered=False, status=None, sentence=f"no answer in {seconds:g} s")
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, UnicodeError) as error:
        words = f"it could not be reached: {error or type(error).__name__}"
        return Outcome(delivered=False, status=None, sentence=words[:300])


def as_json(value: Any) -> bytes:
    """The bytes that are signed and sent."""
    return json.dumps(value, separators=(",", ":")).encode()


def _outcome(response: httpcore.Response, now: datetime) -> Outcome:
    status = response.status
    if 200 <= status < 300:
        return Outcome(delivered=True, status=status, sentence="")
    told = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
    sentence = f"it answered {status}"
    if 300 <= status < 400:
        sentence += ", and redirects are not followed"
    return Outcome(
        delivered=False,
        status=status,
        sentence=sentence,
        retry_after=_seconds(told.decode("latin-1"), now),
    )


def _seconds(told: str, now: datetime) -> float | None:
    """What Retry-After means, in seconds from now: it is a number, or a date."""
    try:
        seconds = float(told) if told.isdecimal() else _until(told, now)
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _until(told: str, now: datetime) -> float:
    moment = parsedate_to_datetime(told)
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - now).total_seconds()


@cache
def _tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one only wraps."""
    if isinstance(address, IPv6Address):
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
        teredo = address.teredo
        return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)
    return address


@final
class _Guarded(httpcore.NetworkBackend):
    """Connects to what a name leads to only where that may be reached, by the address itself."""

    def __init__(self, allowed: Sequence[Network], *, until: float) -> None:
        self._allowed = allowed
        self._until = until
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Look the name up once, and connect to the first good address that it has."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(place[0]) for *_, place in found]
        good = [one for one in addresses if self._may(one)]
        if not good:
            raise AddressRefused(
                f"{host} is at an address that is not public; "
                "MATNAS_WEBHOOK_NETWORKS names what else may be reached"
            )
        stream = self._inner.connect_tcp(
            good[0], port, _left(self._until, timeout), local_address, socket_options
        )
        peer = stream.get_extra_info("server_addr")
        if not self._may(str(peer[0])):
            stream.close()
            raise AddressRefused(f"{host} led to an address that is not public")
        return _Hurried(stream, self._until)

    def _may(self, address: str) -> bool:
        return may_be_reached(ip_address(address), self._allowed)


@final
class _Hurried(httpcore.NetworkStream):
    """A connection whose reads and writes have one time limit together: a trickle ends, too."""

    def __init__(self, inner: httpcore.NetworkStream, until: float) -> None:
        self._inner = inner
        self._until = until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read in the time that is left."""
        return self._inner.read(max_bytes, _left(self._until, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write in the time that is left."""
        self._inner.write(buffer, _left(self._until, timeout))

    def close(self) -> None:
        """Hang up."""
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Check the certificate of the name that was asked for, not of the address."""
        inner = self._inner.start_tls(ssl_context, server_hostname, _left(self._until, timeout))
        return _Hurried(inner, self._until)

    def get_extra_info(self, info: str) -> Any:
        """What the connection knows of itself."""
        return self._inner.get_extra_info(info)


def _left(until: float, timeout: float | None) -> float:
    left = until - monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left if timeout is None else min(left, timeout)
