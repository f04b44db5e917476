"""The client: every call once against a real server, and a watch that survives a broken line."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from search.spec import SearchSpec
from service.api.routes import events
from service.client import Client, Event, Refused, SearchAnswer, Unreachable
from tests.serving import SPEC, Service, play, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def client(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("service.client.RETRY_SECONDS", 0.05)
    with Client(service.url) as opened:
        yield opened


def test_a_search_is_submitted_watched_and_read(
    service: Service, client: Client, tmp_path: Path
) -> None:
    search = client.submit(SearchSpec.model_validate(SPEC))
    play(service, search.id)
    news = list(client.watch(search.id))
    seen = [one.id for one in news if isinstance(one, Event)]
    assert seen == sorted(set(seen))
    last = news[-1]
    assert isinstance(last, SearchAnswer)
    assert last.ended
    assert last.best is not None
    assert [trial.number for trial in client.trials(search.id)] == [0, 1, 2, 3, 4, 5]
    assert client.report(search.id).winner.number == last.best.number
    assert client.profile(search.id).allocations[0].layers
    assert client.structure(search.id, 3) == client.report(search.id).winner.network
    assert client.drawing(search.id, 3).startswith("<svg")
    file = next(file for file in client.files(search.id) if file.name == "network.safetensors")
    client.download(file.link, tmp_path / file.name)
    assert [path.name for path in tmp_path.iterdir()] == ["network.safetensors"]
    assert (tmp_path / file.name).read_bytes() == bytes(range(200))


def test_a_matrix_is_uploaded(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"w": np.eye(4, dtype=np.float32)}))
    assert client.upload(path).startswith("art_")


def test_a_refusal_is_a_sentence_with_its_fields(client: Client) -> None:
    with pytest.raises(Refused, match="Choose one of mlp, vit, mixer, gpt, matrix") as refused:
        client.submit(SPEC | {"model": {"kind": "vitt"}})
    assert (refused.value.status, refused.value.fields) == (422, ("model.kind",))
    with pytest.raises(Refused, match="there is no search"):
        client.get("srch_0")
    with pytest.raises(Refused, match="there is no search"):
        list(client.watch("srch_0"))


def test_a_cancelled_search_ends_the_watch(client: Client) -> None:
    search = client.submit(SPEC)
    client.cancel(search.id)
    *_, last = client.watch(search.id)
    assert isinstance(last, SearchAnswer)
    assert last.state == "CANCELLED"


def test_nothing_at_the_address_says_how_to_start_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}") as client,
        pytest.raises(Unreachable, match="matnas up"),
    ):
        client.get("srch_0")


def test_an_answer_that_is_no_problem_is_still_one_sentence() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(502, text="<html>"))
    http = httpx.Client(base_url="http://proxy", transport=transport)
    with Client("http://proxy", http=http) as client, pytest.raises(Refused, match="502"):
        client.get("srch_0")


def test_a_broken_stream_is_resumed_after_the_last_event(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = client.submit(SPEC)
    play(service, search.id)
    whole = [one.id for one in client.watch(search.id) if isinstance(one, Event)]
    asked: list[int | None] = []
    read = client._stream

    def breaking(search_id: str, last: int | None) -> Iterator[tuple[str, Any]]:
        asked.append(last)
        for count, news in enumerate(read(search_id, last)):
            if len(asked) < 3 and count == 4:
                raise httpx.ReadError("cut")
            yield news

    monkeypatch.setattr(client, "_stream", breaking)
    # A search that has ended is told to its end too, when the line broke before.
    seen = [one.id for one in client.watch(search.id) if isinstance(one, Event)]
    assert seen == whole
    assert asked == [None, whole[3], whole[7]]


@final
@dataclass
class Waiting:
    """A clock that only waiting moves, and how long was waited."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.waits.append(seconds)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    clock = Waiting()
    monkeypatch.setattr("service.client.time", clock)
    return clock


def answering(answer: Callable[[httpx.Request], httpx.Response | None], ended: bytes) -> Client:
    """A client of a service that says this of a search, unless it answers otherwise."""

    def respond(request: httpx.Request) -> httpx.Response:
        if (other := answer(request)) is not None:
            return other
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, content=ended)
        return httpx.Response(200, content=b"event: progress\ndata: " + ended + b"\n\n")

    http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(respond))
    return Client("http://service", http=http)


@pytest.fixture(scope="module")
def ended(service: Service) -> bytes:
    search_id = service.submit()
    service.http.post(f"/searches/{search_id}/cancel")
    return service.http.get(f"/searches/{search_id}").content


@pytest.mark.parametrize(("status", "told"), [(503, "5"), (429, "7"), (503, "")])
def test_a_watch_outlasts_what_will_pass(
    ended: bytes, waiting: Waiting, status: int, told: str
) -> None:
    away = httpx.Response(status, headers={"Retry-After": told}, json={"detail": "not just now"})
    # A stream, a question and a stream again are refused; then all is well.
    refusals = iter([away, away, None, away])
    with answering(lambda _: next(refusals, None), ended) as client:
        *_, last = client.watch("srch_0")
    assert isinstance(last, SearchAnswer)
    assert last.ended
    pause = float(told or 1.0)
    assert waiting.waits == [pause, pause, 1.0, pause, 1.0]


def test_a_watch_has_no_patience_for_ever(ended: bytes, waiting: Waiting) -> None:
    later = httpx.Response(429, headers={"Retry-After": "20"}, json={"detail": "too often"})
    with (
        answering(lambda _: later, ended) as client,
        pytest.raises(Refused, match="too often") as refused,
    ):
        list(client.watch("srch_0"))
    assert refused.value.retry_after == 20
    assert waiting.waits == [20, 20, 10]  # of the stream's thirty, then of the question's
    waiting.now = 0

    def stream_only(request: httpx.Request) -> httpx.Response | None:
        return later if request.url.path.endswith("/events") else None

    with answering(stream_only, ended) as client, pytest.raises(Refused, match="too often"):
        list(client.watch("srch_0"))
