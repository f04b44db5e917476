"""The service from Python: typed calls over HTTP, and an event stream that mends itself."""

import base64
import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self, final

import httpx
from pydantic import BaseModel, ConfigDict

from models.cost import Quantity
from models.spec import NetworkSpec
from search.profile_report import ProfileReport
from search.report import Report
from search.spec import SearchSpec
from service.settings import Settings

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
RETRY_SECONDS = 1.0
# For as long as a service, or what it stands on, takes to restart.
PATIENCE_SECONDS = 30.0
# Asked too often, or something is away: neither is about what was asked.
PASSING = frozenset({429, 503})


class Answer(BaseModel):
    """What the service says; a newer service may say more, which is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@final
class ProgressAnswer(Answer):
    """Where a search stands; the ETA is None while nothing has been measured."""

    phase: str
    done: int
    total: int
    unit: str
    eta_seconds: float | None


@final
class BestAnswer(Answer):
    """The best finished trial that keeps the budget."""

    number: int
    name: str
    validation_loss: float
    cost: int


@final
class SearchAnswer(Answer):
    """A search as the service tells it."""

    id: str
    name: str | None
    state: str
    reason: str
    sentence: str
    progress: ProgressAnswer
    best: BestAnswer | None
    quantity: Quantity
    links: Mapping[str, str]

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED


@final
class TrialAnswer(Answer):
    """One trial of a search."""

    number: int
    name: str
    kind: str
    state: str
    reason: str
    sentence: str
    validation_loss: float | None
    cost: int | None
    seconds: float | None


@final
class FileAnswer(Answer):
    """One file that can be downloaded."""

    name: str
    trial: int | None
    bytes: int
    sha256: str
    link: str


@final
class Event(Answer):
    """One transition of a search or of one of its trials."""

    id: int
    trial_number: int | None
    state: str
    reason: str
    sentence: str


@final
class KeyAnswer(Answer):
    """A key without its secret."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None = None


@final
class Refused(Exception):
    """The service said no: its sentence, the field if there is one, and the HTTP status.

    `retry_after` are the seconds after which it wants to be asked again, where it said so.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        fields: tuple[str, ...] = (),
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.fields = fields
        self.retry_after = retry_after


@final
class Unreachable(Exception):
    """Nothing answers at the address, or not what was sent."""


@final
class Client:
    """A connection to one service; use it in a `with`.

    It shows the API key that it is given, or that MATNAS_API_KEY holds.
    """

    def __init__(
        self, url: str, *, key: str | None = None, http: httpx.Client | None = None
    ) -> None:
        self.url = url.rstrip("/")
        # trust_env would send calls to loopback through a proxy.
        self._http = http or httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)
        kept = Settings().api_key
        key = key or (kept.get_secret_value() if kept else None)
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(
        self, spec: SearchSpec | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> SearchAnswer:
        """Ask for a search."""
        body = spec.model_dump(mode="json") if isinstance(spec, SearchSpec) else dict(spec)
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = self._call("POST", "/v1/searches", json=body, headers=headers)
        return SearchAnswer.model_validate(answer)

    def clone(
        self, search_id: str, changes: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> SearchAnswer:
        """Ask for a search again with some fields changed, warm-started from the first."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        link = f"/v1/searches/{search_id}/clone"
        answer = self._call("POST", link, json=dict(changes), headers=headers)
        return SearchAnswer.model_validate(answer)

    def get(self, search_id: str) -> SearchAnswer:
        """Ask how a search is doing."""
        return SearchAnswer.model_validate(self._call("GET", f"/v1/searches/{search_id}"))

    def cancel(self, search_id: str) -> SearchAnswer:
        """Stop a search, keeping what is done."""
        return SearchAnswer.model_validate(self._call("POST", f"/v1/searches/{search_id}/cancel"))

    def trials(self, search_id: str) -> tuple[TrialAnswer, ...]:
        """Every trial, in the order of the numbers."""
        link: str | None = f"/v1/searches/{search_id}/trials?limit=200"
        found: list[TrialAnswer] = []
        while link:
            page = self._call("GET", link)
            found += [TrialAnswer.model_validate(item) for item in page["items"]]
            link = page["next"]
        return tuple(found)

    def trial(self, search_id: str, number: int) -> TrialAnswer:
        """One trial."""
        answer = self._call("GET", f"/v1/searches/{search_id}/trials/{number}")
        return TrialAnswer.model_validate(answer)

    def structure(self, search_id: str, number: int) -> NetworkSpec:
        """What trial `number` found."""
        answer = self._call("GET", f"/v1/searches/{search_id}/trials/{number}/structure")
        return NetworkSpec.model_validate(answer["network"])

    def drawing(self, search_id: str, number: int) -> str:
        """The same as an SVG."""
        return self._request("GET", f"/v1/searches/{search_id}/trials/{number}/structure.svg").text

    def profile(self, search_id: str) -> ProfileReport:
        """What the search knew of its layers before anything was learned."""
        return ProfileReport.model_validate(self._call("GET", f"/v1/searches/{search_id}/profile"))

    def report(self, search_id: str) -> Report:
        """The table that a search ends with."""
        return Report.model_validate(self._call("GET", f"/v1/searches/{search_id}/report"))

    def files(self, search_id: str) -> tuple[FileAnswer, ...]:
        """What can be downloaded of a search."""
        answer = self._call("GET", f"/v1/searches/{search_id}/artifacts")
        return tuple(FileAnswer.model_validate(item) for item in answer["items"])

    def download(self, link: str, target: Path) -> None:
        """Write one file to `target`, which appears only when it is whole and what was kept."""
        partial, sha256 = target.with_name(f"{target.name}.part"), hashlib.sha256()
        with _reaching(self.url), self._http.stream("GET", link) as response:
            _check(response)
            with partial.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    sha256.update(chunk)
        told = response.headers.get("Repr-Digest", "")
        if told and base64.b64encode(sha256.digest()).decode() not in told:
            partial.unlink()
            raise Unreachable(f"{target.name} did not arrive as it was sent; fetch it again")
        partial.replace(target)

    def upload(self, source: Path) -> str:
        """Send a safetensors file; the id it gets is what a spec names."""
        with source.open("rb") as file:
            answer = self._call(
                "PUT",
                "/v1/artifacts",
                content=file,
                headers={"Content-Type": "application/octet-stream"},
            )
        return str(answer["id"])

    def create_key(
        self, name: str, scopes: Collection[str], *, expires_at: datetime | None = None
    ) -> tuple[KeyAnswer, str]:
        """Make a key; its text is in this answer only."""
        until = None if expires_at is None else expires_at.isoformat()
        body = {"name": name, "scopes": sorted(scopes), "expires_at": until}
        answer = self._call("POST", "/v1/keys", json=body)
        return KeyAnswer.model_validate(answer), str(answer["key"])

    def keys(self) -> tuple[KeyAnswer, ...]:
        """Every key that ever was."""
        answer = self._call("GET", "/v1/keys")
        return tuple(KeyAnswer.model_validate(item) for item in answer["items"])

    def revoke_key(self, key_id: str) -> KeyAnswer:
        """Let a key open nothing from now on."""
        return KeyAnswer.model_validate(self._call("DELETE", f"/v1/keys/{key_id}"))

    def watch(self, search_id: str) -> Iterator[Event | SearchAnswer]:
        """Everything that happens until the search has ended, reconnecting where it left off.

        Gives events as they come, and the search itself whenever its progress has changed.
        """
        last: int | None = None
        until: float | None = None
        while True:
            whole = True
            try:
                for kind, content in self._stream(search_id, last):
                    until = None
                    if kind == "progress":
                        yield SearchAnswer.model_validate(content)
                    else:
                        event = Event.model_validate(content)
                        last = event.id
                        yield event
            except httpx.TransportError:
                whole = False
            except Refused as refusal:
                # Of refusals in a row: what is heard between them begins anew.
                until = until or time.monotonic() + PATIENCE_SECONDS
                _bide(refusal, until)
                whole = False
            search = self._patiently(search_id)
            if whole and search.ended:
                yield search
                return
            time.sleep(RETRY_SECONDS)

    def _patiently(self, search_id: str) -> SearchAnswer:
        """Ask again for as long as a service takes to restart."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.get(search_id)
            except (Unreachable, Refused) as error:
                _bide(error, until)

    def _stream(self, search_id: str, last: int | None) -> Iterator[tuple[str, Any]]:
        headers = {"Accept": "text/event-stream"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        link = f"/v1/searches/{search_id}/events"
        with self._http.stream("GET", link, headers=headers) as response:
            _check(response)
            kind, data = "message", ""
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    data += value
                elif not line and data:
                    yield kind, json.loads(data)
                    kind, data = "message", ""

    def _call(self, method: str, link: str, **more: Any) -> Any:
        return self._request(method, link, **more).json()

    def _request(self, method: str, link: str, **more: Any) -> httpx.Response:
        with _reaching(self.url):
            response = self._http.request(method, link, **more)
        _check(response)
        return response


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise Unreachable(f"nothing answers at {url}; start the service with: matnas up") from error


def _bide(error: Unreachable | Refused, until: float) -> None:
    """Wait until it is time to ask again; raise what will not pass, or has not by `until`."""
    left = until - time.monotonic()
    if left <= 0 or (isinstance(error, Refused) and error.status not in PASSING):
        raise error
    asked = error.retry_after if isinstance(error, Refused) else None
    time.sleep(min(left, RETRY_SECONDS if asked is None else asked))


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    told = response.headers.get("Retry-After", "")
    retry_after = float(told) if told.isdecimal() else None
    try:
        said = response.json()
        sentence, fields = said["detail"], tuple(one["field"] for one in said.get("errors", ()))
    except (ValueError, KeyError, AttributeError, TypeError):
        sentence = f"the service answered {response.status_code} {response.reason_phrase}"
        fields = ()
    raise Refused(response.status_code, sentence, fields, retry_after=retry_after)
