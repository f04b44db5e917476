"""What every request meets: an id, the same-site rules, and problem+json for every failure."""

import asyncio
from collections.abc import Iterator, MutableMapping
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import Response

from service import jobs
from service.api.requests import RequestGate
from tests.serving import SPEC, Service, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home"), allowed_hosts=["Matnas.lan"]) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing/here", 404),
        ("GET", "/static/nothing.js", 404),
        ("GET", "/static/../app.py", 404),
        ("DELETE", "/searches", 405),
        ("GET", "/searches/srch_0", 404),
        ("GET", "/searches/srch_0/events", 404),
        ("GET", "/searches/srch_0/trials/x", 422),
        ("GET", "/searches?name=%00", 400),
        ("GET", "/searches/%00", 400),
        ("PUT", "/artifacts", 422),
    ],
)
def test_every_failure_is_a_problem(service: Service, method: str, path: str, status: int) -> None:
    answer = service.http.request(method, path)
    body = answer.json()
    assert answer.status_code == status == body["status"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "detail", "request_id"} <= body.keys()
    assert answer.headers["x-request-id"] == body["request_id"]
    assert "/" not in body["detail"].replace("/openapi.json", "")


def test_our_own_fault_shows_nothing_of_ours(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret at /etc/shadow")

    monkeypatch.setattr(jobs, "get_searches", fail)
    # The server closes a connection on which it has failed.
    headers = {"X-Request-ID": "mine-1", "Connection": "close"}
    answer = service.http.get("/searches/srch_1", headers=headers)
    assert (answer.status_code, answer.json()["request_id"]) == (500, "mine-1")
    assert answer.headers["x-request-id"] == "mine-1"
    assert "secret" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_request_keeps_its_own_name_only_if_it_is_harmless(service: Service) -> None:
    def name(offered: str) -> str:
        answer = service.http.get("/healthz", headers={"X-Request-ID": offered})
        return answer.headers["x-request-id"]

    assert name("abc-123") == "abc-123"
    for offered in ("a b", "x" * 65, "<script>"):
        assert len(name(offered)) == 32


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("[::1]:80", 200),
        ("MATNAS.lan", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("[bad", 400),
        ("a@localhost", 400),
    ],
)
def test_only_known_hosts_are_answered(service: Service, host: str, status: int) -> None:
    assert service.http.get("/healthz", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(("host", "status"), [("10.0.0.7:8000", 200), ("10.0.0.8:8000", 400)])
def test_the_address_that_was_connected_to_is_a_known_host(host: str, status: int) -> None:
    gate = RequestGate(Response(), hosts=frozenset(), max_body_bytes=1000, max_upload_bytes=1000)
    told: list[Any] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"host", host.encode())],
        "server": ("10.0.0.7", 8000),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: MutableMapping[str, Any]) -> None:
        told.append(message)

    asyncio.run(gate(scope, receive, send))
    assert told[0]["status"] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "{url}"}, 202),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_writes_come_from_here_only(service: Service, headers: dict[str, str], status: int) -> None:
    sent = {name: value.format(url=service.url) for name, value in headers.items()}
    assert service.http.post("/searches", json=SPEC, headers=sent).status_code == status
    assert service.http.get("/searches", headers=sent).status_code == 200


def test_every_answer_is_dressed(service: Service) -> None:
    for path in ("/", "/searches", "/nothing", "/static/live.js"):
        headers = service.http.get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-cache"


def test_the_service_says_whether_it_is_ready(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = service.http.get("/readyz")
    assert (idle.status_code, idle.json()["worker"]) == (503, "failing")
    with service.database.write() as session:
        jobs.note_worker(session, "hand", now=datetime.now(UTC))
    ready = service.http.get("/v1/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    monkeypatch.setattr("service.api.routes.health.at_head", lambda _: False)
    behind = service.http.get("/readyz")
    assert (behind.status_code, behind.json()["migrations"]) == (503, "failing")
    assert service.http.get("/healthz").json() == {"status": "ok"}
    assert service.http.get("/version").json()["api"] == "v1"


def test_the_catalogue_lists_what_can_be_asked_for(service: Service) -> None:
    def kinds(path: str) -> list[str]:
        return [one["kind"] for one in service.http.get(path).json()]

    assert kinds("/models") == ["mlp", "vit", "mixer", "gpt", "matrix"]
    assert {"dense", "low_rank", "block_diagonal", "gblr"} <= set(kinds("/structures"))
    assert "patch" in service.http.get("/models").json()[1]["json_schema"]["properties"]
    data = {one["name"]: one for one in service.http.get("/datasets").json()}
    assert list(data) == ["digits", "mnist-5k", "fashion-mnist", "state-of-the-union"]
    assert not data["digits"]["missing"]
    assert data["state-of-the-union"]["missing"]
    assert data["state-of-the-union"]["task"]["kind"] == "text"
    assert "budget" in service.http.get("/schema").json()["properties"]


def test_the_openapi_document_names_every_route_once(service: Service) -> None:
    paths = service.http.get("/openapi.json").json()["paths"]
    assert all(path.startswith("/v1/") for path in paths)
    assert {"/v1/searches", "/v1/searches/{search_id}/events", "/v1/artifacts"} <= paths.keys()
