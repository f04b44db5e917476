"""The door: every route there is, without a key, with the wrong one, and with one that was good."""

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.routing import iter_route_contexts
from sqlalchemy import update

from service import jobs
from service.api import door
from service.api.app import create_app
from service.api.routes import events
from service.credentials import SCOPES, Scope
from service.dashboard.pages import is_page
from service.db.tables import KeyRow
from service.logs import Discreet
from service.settings import Settings
from tests.serving import SPEC, Service, serving

# Whoever asks: probes, the document of what there is, and what the login page is made of.
OPEN = {
    "/login",
    "/logout",
    "/healthz",
    "/readyz",
    "/v1/healthz",
    "/v1/readyz",
    "/openapi.json",
    "/static",
}
ADMINISTRATION = ("/keys", "/webhooks", "/audit")


@dataclass(frozen=True)
class Call:
    """One method of one route, and the scope that it wants."""

    method: str
    path: str
    scope: Scope

    @property
    def address(self) -> str:
        """A place that is nowhere, but of the right form."""
        return re.sub(r"\{\w+\}", "0", self.path)


def _calls() -> list[Call]:
    found = set()
    for context in iter_route_contexts(create_app(Settings()).routes):
        path = str(context.path)
        for method in context.methods or {"GET"}:
            if path in OPEN:
                continue
            scope: Scope = "read" if method in {"GET", "HEAD"} else "submit"
            if path.removeprefix("/v1").startswith(ADMINISTRATION):
                scope = "admin"
            found.add((method, path, scope))
    return [Call(*one) for one in sorted(found)]


CALLS = _calls()


@dataclass(frozen=True)
class Keyed:
    """A server that has keys: one for each scope, one that expired, one that was revoked."""

    service: Service
    keys: dict[str, str]

    def ask(self, call: Call, key: str | None, **headers: str) -> httpx.Response:
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return self.service.http.request(call.method, call.address, headers=headers)


def make_key(service: Service, *scopes: Scope, expires_at: datetime | None = None) -> str:
    with service.database.write() as session:
        now = datetime.now(UTC)
        _, text = jobs.create_key(
            session, name="test", scopes=scopes, expires_at=expires_at, now=now
        )
    return text


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    with serving(tmp_path_factory.mktemp("home")) as service:
        keys: dict[str, str] = {scope: make_key(service, scope) for scope in SCOPES}
        keys |= {f"not {one}": make_key(service, *(set(SCOPES) - {one})) for one in SCOPES}
        keys |= {state: make_key(service, *SCOPES) for state in ("expired", "revoked")}
        past = datetime.now(UTC) - timedelta(seconds=1)
        with service.database.write() as session:
            expired = update(KeyRow).where(KeyRow.id == keys["expired"][:16])
            session.execute(expired.values(expires_at=past))
            jobs.revoke_key(session, keys["revoked"][:16], now=past)
        keys["forged"] = keys["read"][:17] + 64 * "0"
        keys["unknown"] = "mtn_" + 12 * "0" + "_" + 64 * "0"
        keys["malformed"] = "secret"
        yield Keyed(service, keys)


def test_the_open_routes_are_these_and_no_others() -> None:
    paths = {str(one.path) for one in iter_route_contexts(create_app(Settings()).routes)}
    assert paths >= OPEN
    assert {call.path for call in CALLS} == paths - OPEN


@pytest.mark.parametrize(
    "key", [None, "forged", "unknown", "malformed", "expired", "revoked"], ids=str
)
def test_no_route_answers_without_a_good_key(keyed: Keyed, key: str | None) -> None:
    for call in CALLS:
        answer = keyed.ask(call, None if key is None else keyed.keys[key])
        if is_page(call.path):
            assert answer.status_code == 303, call
            assert answer.headers["location"].startswith("/login?next=%2F"), call
        else:
            assert answer.status_code == 401, call
            assert answer.headers["www-authenticate"] == "Bearer"


def test_no_route_answers_a_key_without_its_scope(keyed: Keyed) -> None:
    for call in CALLS:
        answer = keyed.ask(call, keyed.keys[f"not {call.scope}"])
        assert (answer.status_code, call.scope in answer.text) == (403, True), call


def test_every_route_answers_a_key_that_has_just_its_scope(keyed: Keyed) -> None:
    for call in CALLS:
        answer = keyed.ask(call, keyed.keys[call.scope])
        assert answer.status_code not in {401, 403, 500}, call


def test_the_open_routes_are_open(keyed: Keyed) -> None:
    for path in OPEN - {"/static", "/logout"} | {"/static/style.css"}:
        assert keyed.service.http.get(path).status_code in {200, 503}, path


def test_a_refusal_says_what_to_do_and_shows_no_secret(keyed: Keyed) -> None:
    def told(key: str | None) -> str:
        answer = keyed.ask(Call("GET", "/v1/searches", "read"), key)
        assert answer.headers["content-type"] == "application/problem+json"
        return str(answer.json()["detail"])

    assert "matnas keys create" in told(None)
    assert told(keyed.keys["expired"]).endswith("has expired; ask for another")
    assert told(keyed.keys["revoked"]).endswith("has been revoked; ask for another")
    for key in ("forged", "unknown", "malformed"):
        assert told(keyed.keys[key]) == "this is no key of this server"
    assert keyed.keys["expired"] not in told(keyed.keys["expired"])


def test_another_scheme_is_no_key(keyed: Keyed) -> None:
    headers = {"Authorization": f"Basic {keyed.keys['read']}"}
    assert keyed.service.http.get("/searches", headers=headers).status_code == 401


def test_without_keys_loopback_is_open_and_the_first_key_shuts_it(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        assert service.http.post("/searches", json=SPEC).status_code == 202
        assert service.http.get("/keys").json() == {"items": []}
        # Whoever sends a key means it.
        bad = service.http.get("/searches", headers={"Authorization": "Bearer x"})
        assert bad.status_code == 401
        body = {"name": "first", "scopes": ["admin", "read"]}
        made = service.http.post("/keys", json=body)
        assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
        assert service.http.get("/searches").status_code == 401
        own = {"Authorization": f"Bearer {made.json()['key']}"}
        listed = service.http.get("/keys", headers=own)
        assert made.json()["key"] not in listed.text
        assert listed.json()["items"][0]["scopes"] == ["read", "admin"]
        assert service.http.get("/searches", headers=own).status_code == 200
        for _ in range(2):
            gone = service.http.delete(made.headers["location"], headers=own)
            assert gone.status_code in {200, 401}
        # Revoked at once, and a door without a usable key stays shut.
        assert service.http.get("/searches", headers=own).status_code == 401
        assert service.http.get("/searches").status_code == 401


def test_a_key_made_beside_the_service_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "OPEN_SECONDS", 0.05)
    with serving(tmp_path) as service:
        assert service.http.get("/searches").status_code == 200
        make_key(service, "read")
        until = time.monotonic() + 20
        while service.http.get("/searches").status_code != 401:
            assert time.monotonic() < until


@pytest.mark.parametrize(
    ("server", "here"),
    [
        (("127.0.0.1", 80), True),
        (("::1", 80), True),
        (("10.0.0.7", 80), False),
        (("0.0.0.0", 80), False),
        (("/run/socket", None), False),
        (None, False),
    ],
)
def test_only_connections_to_loopback_are_from_here(server: Any, *, here: bool) -> None:
    """Whatever the Host header says: it is the sender's word."""
    headers = [(b"host", b"127.0.0.1")]
    request = Request({"type": "http", "server": server, "headers": headers})
    assert door._from_this_machine(request) == here


def test_a_key_that_makes_no_sense_is_refused(keyed: Keyed) -> None:
    own = {"Authorization": f"Bearer {keyed.keys['admin']}"}
    for body, field in (
        ({"name": "", "scopes": ["read"]}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "x", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "scopes": ["read"], "expires": None}, "expires"),
    ):
        answer = keyed.service.http.post("/keys", json=body, headers=own)
        assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert "did you mean expires_at?" in answer.text
    assert keyed.service.http.delete("/keys/mtn_0", headers=own).status_code == 404


def test_only_what_cannot_be_used_is_stored(keyed: Keyed) -> None:
    content = (keyed.service.settings.home / "matnas.db").read_bytes()
    content += (keyed.service.settings.home / "matnas.db-wal").read_bytes()
    assert keyed.keys["read"][:16].encode() in content
    for key in keyed.keys.values():
        assert key == "secret" or key[17:].encode() not in content


def test_a_stream_ends_with_the_key_that_opened_it(
    keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.05)
    service, passing = keyed.service, make_key(keyed.service, "read")
    own = {"Authorization": f"Bearer {keyed.keys['submit']}"}
    search_id = service.http.post("/searches", json=SPEC, headers=own).json()["id"]
    address = f"/searches/{search_id}/events"
    with service.http.stream("GET", address, headers={"Authorization": f"Bearer {passing}"}) as one:
        lines = one.iter_lines()
        next(lines)
        with service.database.write() as session:
            jobs.revoke_key(session, passing[:16], now=datetime.now(UTC))
        assert list(lines)  # it comes to its end


def test_nothing_that_is_logged_holds_a_secret(keyed: Keyed) -> None:
    shown = StringIO()
    handlers = [h for name in ("service", "uvicorn") for h in logging.getLogger(name).handlers]
    ours = [one for one in handlers if isinstance(one.formatter, Discreet)]
    assert len(ours) == 2
    for handler in ours:
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(shown)
    for key in (keyed.keys["read"], keyed.keys["revoked"]):
        headers = {"Authorization": f"Bearer {key}", "Cookie": f"matnas_session={key}"}
        for path in ("/searches", f"/{key}", f"/searches?name={key}", f"/searches/{key}"):
            keyed.service.http.get(path, headers=headers)
        logging.getLogger("service").error("postgresql://me:%s@host/x failed with %s", "pa55", key)
        try:
            raise RuntimeError(key)  # noqa: TRY301
        except RuntimeError:
            logging.getLogger("uvicorn.error").exception("it failed")
    said = shown.getvalue()
    assert said.count("GET /mtn_") >= 2
    assert "it failed" in said
    assert "pa55" not in said
    for key in keyed.keys.values():
        assert key == "secret" or key[17:] not in said
