"""The feed of a search: in order, resumed where it was left, ended with the search."""

import json
import time
from collections.abc import Iterator

import pytest

from service.api.routes import events
from tests.serving import Service, begin, play, report_curve, serving


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.05)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


def ids(text: str) -> list[int]:
    return [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]


def test_a_finished_search_is_told_from_its_beginning_and_the_stream_ends(service: Service) -> None:
    search_id = service.submit()
    play(service, search_id)
    answer = service.http.get(f"/searches/{search_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    listed = service.http.get(f"/searches/{search_id}/events?after=0&limit=200").json()["items"]
    assert ids(answer.text) == [event["id"] for event in listed]
    assert listed[-1]["state"] == "SUCCEEDED"
    assert '"state":"SUCCEEDED"' in answer.text


def test_a_stream_goes_on_after_the_last_event_that_was_seen(service: Service) -> None:
    search_id = service.submit()
    play(service, search_id)
    seen = ids(service.http.get(f"/searches/{search_id}/events").text)
    headers = {"Last-Event-ID": str(seen[4])}
    rest = service.http.get(f"/searches/{search_id}/events", headers=headers).text
    assert ids(rest) == seen[5:]


@pytest.mark.parametrize("last", ["x", "-1", "9" * 20])
def test_a_last_event_that_makes_no_sense_is_no_failure(service: Service, last: str) -> None:
    search_id = service.submit()
    service.http.post(f"/searches/{search_id}/cancel")
    answer = service.http.get(f"/searches/{search_id}/events", headers={"Last-Event-ID": last})
    assert answer.status_code == 200


def test_json_pages_follow_each_other(service: Service) -> None:
    search_id = service.submit()
    play(service, search_id)
    link, found = f"/searches/{search_id}/events?after=0&limit=4", []
    while link:
        page = service.http.get(link).json()
        found += [event["id"] for event in page["items"]]
        link = page["next"]
    assert found == ids(service.http.get(f"/searches/{search_id}/events").text)


def test_progress_comes_while_it_is_made(service: Service) -> None:
    search_id = service.submit()
    claim = begin(service, search_id, 0)
    with service.http.stream("GET", f"/searches/{search_id}/events") as stream:
        phases = (
            json.loads(line[6:])["progress"]["phase"]
            for line in stream.iter_lines()
            if line.startswith("data: ") and "progress" in line
        )
        assert next(phases) == "reference: starting"
        report_curve(service, claim, {3: 0.7})
        assert next(phases) == "reference: training, epoch 3 of 6"


def test_a_silent_stream_beats_with_a_new_estimate(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.5)
    search_id = service.submit()
    claim = begin(service, search_id, 0)
    report_curve(service, claim, {3: 0.7})
    with service.http.stream("GET", f"/searches/{search_id}/events") as stream:
        told = (
            (time.monotonic(), json.loads(line[6:])["progress"]["eta_seconds"])
            for line in stream.iter_lines()
            if line.startswith("data: ") and "progress" in line
        )
        (first, left), (second, later) = next(told), next(told)
    assert second - first > 0.4
    assert left != later
