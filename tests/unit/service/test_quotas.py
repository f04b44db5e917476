"""Limits: how often a key may ask, and how much it may have in use; a refusal names the remedy."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save

from service import jobs
from service.api import rate
from service.api.rate import RateLimit
from service.credentials import SCOPES
from service.db.session import Database
from service.errors import RateLimited
from service.jobs.quotas import compute_seconds
from service.quota import Quota
from service.settings import Settings
from tests.integration.story import (
    BASELINES,
    FIRST,
    LEASE,
    MEASUREMENT,
    REFERENCE,
    SECOND,
    Story,
)
from tests.servers import free_port
from tests.serving import SPEC, Service, begin, end, serving

MATRIX = save({"w": np.eye(4, dtype=np.float32)})
OTHER = save({"w": 2 * np.eye(4, dtype=np.float32)})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    with serving(home, quota_live_searches=1, rate_limit="") as running:
        yield running


def client(service: Service, quota: Quota | None = None) -> httpx.Client:
    """Somebody with a key of their own."""
    with service.database.write() as session:
        now = datetime.now(UTC)
        _, key = jobs.create_key(
            session, name="one", scopes=SCOPES, expires_at=None, now=now, quota=quota
        )
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=30)


def refused(answer: httpx.Response, *words: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["type"]) == (429, "urn:matnas:problem:quota_exceeded")
    for word in (*words, "administrator", "GET /v1/quota"):
        assert word in body["detail"], body["detail"]


def test_each_key_has_its_own_live_searches(service: Service) -> None:
    with client(service) as one, client(service) as other:
        first = one.post("/searches", json=SPEC)
        assert first.status_code == 202
        refused(one.post("/searches", json=SPEC), "1 live searches", "cancel one")
        assert other.post("/searches", json=SPEC).status_code == 202
        said = one.get("/quota").json()
        assert said["live_searches"] == {"used": 1, "limit": 1}
        assert said["compute_seconds_a_day"] == {"used": 0, "limit": None}
        assert said["requests"] == {"limit": None, "remaining": None}
        one.post(f"/searches/{first.json()['id']}/cancel")
        assert one.post("/searches", json=SPEC).status_code == 202


def test_a_key_s_own_quota_holds_instead(service: Service) -> None:
    with client(service, Quota(live_searches=None)) as one:
        assert one.get("/quota").json()["live_searches"] == {"used": 0, "limit": None}
        for _ in range(2):
            assert one.post("/searches", json=SPEC).status_code == 202
        body: dict[str, Any] = {"name": "x", "scopes": ["read"], "quota": {"live_searches": 7}}
        made = one.post("/keys", json=body).json()
        assert made["quota"]["live_searches"] == 7
        wrong = one.post("/keys", json=body | {"quota": {"live_searches": -1}})
        assert (wrong.status_code, wrong.json()["field"]) == (422, "quota.live_searches")


def test_an_idempotency_key_is_its_sender_s(service: Service) -> None:
    with client(service) as one, client(service) as other:
        headers = {"Idempotency-Key": "monday"}
        mine = [one.post("/searches", json=SPEC, headers=headers).json()["id"] for _ in range(2)]
        assert mine[0] == mine[1]
        assert other.post("/searches", json=SPEC, headers=headers).json()["id"] != mine[0]


def test_computing_is_counted_by_the_day(service: Service) -> None:
    quota = Quota(compute_seconds_a_day=0.001, live_searches=None)
    with client(service, quota) as one:
        search_id, paused = (one.post("/searches", json=SPEC).json()["id"] for _ in range(2))
        one.post(f"/searches/{paused}/pause").raise_for_status()
        claim = begin(service, search_id, 0)
        end(service, claim, jobs.Ending("FAILED", reason="error", sentence="it broke"))
        answer = one.post("/searches", json=SPEC)
        refused(answer, "s of computing are spent today", "midnight")
        assert 0 < int(answer.headers["retry-after"]) <= 86400
        assert one.get("/quota").json()["day_ends_at"].endswith("T00:00:00Z")
        more = {"compute": {"trials": 3}}
        with client(service) as other:  # it would be on the account of the first
            for asking in (one, other):
                refused(asking.patch(f"/searches/{paused}", json=more), "are spent today")
                refused(asking.post(f"/searches/{paused}/resume"), "are spent today")
        assert one.post(f"/searches/{search_id}/resume").status_code == 409  # and not tomorrow
        # Deleting the evidence gives nothing back.
        for _ in range(2):
            before = one.get("/quota").json()["compute_seconds_a_day"]
            assert one.delete(f"/searches/{search_id}").status_code in {204, 404}
            assert one.get("/quota").json()["compute_seconds_a_day"] == before
        refused(one.post("/searches", json=SPEC), "are spent today")


def test_uploads_fit_or_are_refused_whole(service: Service) -> None:
    with client(service, Quota(artifact_bytes=len(MATRIX) + 1)) as one:
        assert one.put("/artifacts", content=MATRIX).status_code == 201
        said = one.get("/quota").json()["artifact_bytes"]
        assert said == {"used": len(MATRIX), "limit": len(MATRIX) + 1}
        refused(one.put("/artifacts", content=OTHER), "leaves 1 bytes")
    with client(service, Quota(artifact_bytes=0)) as other:
        # What somebody else has sent is theirs, but it is to be sent anew to be named.
        refused(other.put("/artifacts", content=OTHER), "leaves 0 bytes")


def test_of_two_uploads_at_once_the_one_without_room_leaves_nothing(service: Service) -> None:
    first, second = (save({"w": n * np.eye(4, dtype=np.float32)}) for n in (3, 4))
    uploads = service.files.uploads
    with client(service, Quota(artifact_bytes=len(first) + 1)) as one:

        def in_two_parts() -> Iterator[bytes]:
            yield second[:50]
            while not any(uploads.glob("arriving-*")):  # there was room for it when it began
                time.sleep(0.01)
            assert one.put("/artifacts", content=first).status_code == 201
            yield second[50:]

        before = set(uploads.glob("*"))
        refused(one.put("/artifacts", content=in_two_parts()), "leaves 1 bytes")
        (kept,) = set(uploads.glob("*")) - before
        assert kept.read_bytes() == first


def test_an_upload_whose_file_was_removed_meanwhile_is_asked_for_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = save({"w": 5 * np.eye(4, dtype=np.float32)})

    def removed(*told: Any) -> None:  # by another who sent the same bytes, and had no room
        service.files.remove_upload(told[-1].id)

    with client(service) as one:
        with monkeypatch.context() as patched:
            patched.setattr(jobs, "check_upload", removed)
            answer = one.put("/artifacts", content=matrix)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "send it again" in answer.json()["detail"]
        assert one.put("/artifacts", content=matrix).status_code == 201


def test_events_say_which_key_it_was(service: Service) -> None:
    with client(service) as one:
        search_id = one.post("/searches", json=SPEC).json()["id"]
        one.post(f"/searches/{search_id}/cancel")
        told = one.get(f"/searches/{search_id}/events?after=0").json()["items"]
        key_id = one.headers["Authorization"].removeprefix("Bearer ")[:16]
        assert {event["actor"] for event in told} == {f"key {key_id}"}


def test_seconds_are_those_of_attempts_since_midnight(database: Database) -> None:
    """Side by side counted each; what was lost counts until it was noticed, pauses do not."""
    story = Story(database)
    story.begin(0)
    story.later(10)
    day = jobs.midnight(story.now)
    with database.read() as session:
        assert compute_seconds(session, None, now=story.now) == 10
        assert compute_seconds(session, None, now=day + jobs.DAY + timedelta(seconds=5)) == 5
        assert compute_seconds(session, "mtn_0", now=story.now) == 0
    story.cancel()
    story.later(LEASE.total_seconds() + 1)
    story.recover()  # its worker is lost, and the search is over
    ran = 10 + LEASE.total_seconds() + 1
    story.later(1000)
    with database.read() as session:
        assert compute_seconds(session, None, now=story.now) == ran
        assert compute_seconds(session, None, now=day + jobs.DAY) == 0


def test_a_quota_that_is_used_up_ends_a_search_with_what_it_has(database: Database) -> None:
    story = Story(database)
    story.run(REFERENCE, *BASELINES, metrics={"validation_loss": 0.5})
    running = story.begin(FIRST)
    quota = Quota(compute_seconds_a_day=100)
    story.spend(quota)
    assert story.trial(FIRST).state == "RUNNING"
    story.later(100)
    story.spend(quota)
    assert story.renew(running).stop
    assert not story.finish(running)
    assert (story.trial(FIRST).state, story.trial(SECOND).state) == ("CANCELLED", "CANCELLED")
    assert story.hints() == [MEASUREMENT]
    story.spend(quota)  # which takes the measurement for no trial
    story.run(MEASUREMENT)
    ended = story.search
    assert (ended.state, ended.reason) == ("SUCCEEDED", "compute_exhausted")
    assert "the quota allows in a day is used up" in ended.sentence


def test_a_quota_that_is_used_up_fails_a_search_that_has_nothing(database: Database) -> None:
    quota = Quota(compute_seconds_a_day=5)
    for done in ((), (REFERENCE,)):
        story = Story(database)
        story.run(*done)
        story.begin(REFERENCE if not done else BASELINES[0])
        story.later(6)
        story.spend(quota)
        assert (story.search.state, story.search.reason) == ("FAILED", "compute_exhausted")
        assert set(story.states) <= {"COMPLETE", "CANCELLED"}


def test_what_has_begun_nothing_waits_for_another_day(database: Database) -> None:
    story = Story(database)
    story.spend(Quota(compute_seconds_a_day=0))
    waiting = story.search
    assert (waiting.state, waiting.reason) == ("PAUSED", "compute_exhausted")
    assert "after midnight" in waiting.sentence
    assert set(story.states) == {"WAITING"}
    assert story.tell("resume").state == "QUEUED"
    story.spend(Quota())
    assert story.search.state == "QUEUED"


def asked(limit: RateLimit, times: int) -> int:
    """How many of so many requests are answered."""
    answered = 0
    for _ in range(times):
        try:
            limit.take("mtn_0")
            answered += 1
        except RateLimited:
            continue
    return answered


def test_a_key_that_asks_too_often_is_told_when_to_ask_again(tmp_path: Path) -> None:
    with serving(tmp_path, rate_limit="3/minute") as service, client(service) as one:
        assert [one.get("/quota").status_code for _ in range(4)] == [200, 200, 200, 429]
        answer = one.get("/searches")
        assert (answer.status_code, answer.json()["type"]) == (
            429,
            "urn:matnas:problem:rate_limited",
        )
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "may ask 3 times a minute" in answer.json()["detail"]
        with client(service) as other:
            assert other.get("/quota").json()["requests"] == {"limit": "3/minute", "remaining": 2}


def test_processes_count_together_where_they_share_redis(valkey_url: str) -> None:
    settings = Settings(broker_url=valkey_url, rate_limit="5/hour")
    one, other = RateLimit(settings), RateLimit(settings)
    assert asked(one, 3) + asked(other, 4) == 5
    assert one.remaining("mtn_0") == 0
    assert one.remaining("mtn_1") == 5


def test_without_redis_each_process_counts_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(rate.log, "warning", lambda text, *_: told.append(text))
    settings = Settings(broker_url=f"redis://127.0.0.1:{free_port()}/0", rate_limit="2/hour")
    limit = RateLimit(settings)
    assert asked(limit, 3) == 2
    assert len(told) == 1  # it is left alone for a while


def test_a_limit_is_a_number_and_a_time() -> None:
    for text in ("", "1/second", "6000/minute"):
        assert asked(RateLimit(Settings(rate_limit=text)), 1) == 1
    for text in ("many", "0/second", "5 per minute", "5/fortnight"):
        with pytest.raises(ValidationError, match="rate_limit"):
            Settings(rate_limit=text)
