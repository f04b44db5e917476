"""What is done to a search that is there, over HTTP: paused, resumed, killed, changed, deleted."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from service import jobs
from tests.serving import Service, begin, end, play, report_curve, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


def tell(service: Service, search_id: str, how: str, status: int = 202) -> dict[str, Any]:
    answer = service.http.post(f"/v1/searches/{search_id}/{how}")
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


def amend(service: Service, search_id: str, changes: object) -> Any:
    return service.http.patch(f"/v1/searches/{search_id}", json=changes)


def leave(service: Service, claim: jobs.Claim) -> None:
    """Leave a trial as a worker does whose search is paused."""
    with service.database.write() as session:
        assert jobs.release(
            session,
            claim.trial_id,
            attempt=claim.attempt,
            reason="user_pause",
            sentence="the search was paused",
            now=datetime.now(UTC),
            max_attempts=3,
        )


def test_a_search_that_runs_is_paused_and_resumed_without_a_loss(service: Service) -> None:
    search_id = service.submit()
    claim = begin(service, search_id, 0)
    for _ in range(2):
        assert tell(service, search_id, "pause")["state"] == "PAUSING"
    with service.database.write() as session:
        assert jobs.record(session, claim, stage=None, points=()).pause
    assert "PAUSED" in tell(service, search_id, "resume", 409)["detail"]
    leave(service, claim)
    paused = tell(service, search_id, "pause")
    assert (paused["state"], paused["reason"]) == ("PAUSED", "user_pause")
    assert service.http.get("/searches?state=PAUSED&limit=1").json()["items"][0]["id"] == search_id
    for _ in range(2):
        assert tell(service, search_id, "resume")["state"] == "QUEUED"
    trial = service.http.get(f"/searches/{search_id}/trials/0").json()
    assert (trial["state"], trial["losses"], trial["attempt"]) == ("WAITING", 0, 1)
    play(service, search_id)
    assert service.http.get(f"/searches/{search_id}").json()["state"] == "SUCCEEDED"
    tell(service, search_id, "pause", 409)
    tell(service, search_id, "resume", 409)


def test_the_time_of_a_pause_is_not_the_searchs(service: Service) -> None:
    search_id = service.submit(compute={"trials": 1, "seconds": 3600})
    end(service, begin(service, search_id, 0), jobs.Ending("COMPLETE"))
    before = tell(service, search_id, "pause")
    after = tell(service, search_id, "resume")
    assert before["state"] == "PAUSED"
    assert after["deadline_at"] > before["deadline_at"]
    begin(service, search_id, 1)
    again = service.http.get(f"/searches/{search_id}").json()
    assert (again["deadline_at"], again["started_at"]) == (
        after["deadline_at"],
        before["started_at"],
    )


def test_a_kill_overtakes_a_cancellation_and_says_so(service: Service) -> None:
    search_id = service.submit()
    claim = begin(service, search_id, 0)
    tell(service, search_id, "cancel")
    with service.database.read() as session:
        assert jobs.wish(session, claim) == "stop"
    for _ in range(2):
        assert tell(service, search_id, "kill")["reason"] == "killed"
    with service.database.write() as session:
        assert jobs.wish(session, claim) == "end"
        jobs.release(
            session,
            claim.trial_id,
            attempt=claim.attempt,
            reason="worker_lost",
            sentence="its process ended with -9",
            now=datetime.now(UTC),
            max_attempts=3,
        )
    ended = tell(service, search_id, "kill")
    assert (ended["state"], ended["reason"]) == ("CANCELLED", "killed")
    trial = service.http.get(f"/searches/{search_id}/trials/0").json()
    assert (trial["state"], trial["reason"]) == ("CANCELLED", "killed")
    tell(service, search_id, "pause", 409)
    tell(service, search_id, "resume", 409)


def test_what_is_paused_can_be_cancelled(service: Service) -> None:
    search_id = service.submit()
    assert tell(service, search_id, "pause")["state"] == "PAUSED"
    assert tell(service, search_id, "cancel")["state"] == "CANCELLED"


def test_a_search_is_renamed_and_tagged_anew_even_when_it_has_ended(service: Service) -> None:
    search_id = service.submit()
    tell(service, search_id, "cancel")
    tag = service.http.get(f"/searches/{search_id}").headers["etag"]
    body = amend(service, search_id, {"name": "renamed", "tags": ["new"], "priority": 7}).json()
    assert (body["name"], body["tags"], body["priority"]) == ("renamed", ["new"], 7)
    assert body["spec"]["name"] == "renamed"
    assert service.http.get("/searches?tag=new").json()["items"][0]["id"] == search_id
    same = service.http.get(f"/searches/{search_id}", headers={"If-None-Match": tag})
    assert same.status_code == 200
    events = service.http.get(f"/searches/{search_id}/events?after=0").json()["items"]
    assert events[-1]["sentence"] == "the client changed name, tags, priority"
    assert events[-1]["kind"] == "change"  # or webhooks would be told again that it has ended
    assert amend(service, search_id, {"name": None}).json()["name"] is None
    assert amend(service, search_id, {}).json()["tags"] == ["new"]


def test_a_live_search_gets_more_candidates_before_what_comes_after_them(service: Service) -> None:
    search_id = service.submit(compute={"trials": 1, "seconds": 100})
    play(service, search_id, until=3)
    before = service.http.get(f"/searches/{search_id}").json()
    after = amend(service, search_id, {"compute": {"trials": 3, "seconds": 160}}).json()
    assert (after["progress"]["total"], before["progress"]["total"]) == (7, 5)
    assert after["spec"]["compute"]["trials"] == 3
    passed = [datetime.fromisoformat(one["deadline_at"]) for one in (before, after)]
    assert (passed[1] - passed[0]).total_seconds() == 60
    trials = service.http.get(f"/searches/{search_id}/trials").json()["items"]
    assert [trial["kind"] for trial in trials[3:]] == ["candidate"] * 3 + ["measurement"]
    free = amend(service, search_id, {"compute": {"seconds": None}}).json()
    assert (free["deadline_at"], free["spec"]["compute"]["seconds"]) == (None, None)
    for number in range(3, 7):
        end(service, begin(service, search_id, number), jobs.Ending("COMPLETE"))
    assert service.http.get(f"/searches/{search_id}").json()["state"] == "SUCCEEDED"
    assert amend(service, search_id, {"compute": {"trials": 9}}).status_code == 409


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"compute": {"trials": 1}}, "compute.trials"),
        ({"compute": {"seconds": 5}}, "compute.seconds"),
        ({"compute": {"epochs": 5}}, "compute.epochs"),
        ({"name": ""}, "name"),
        ({"tags": [""]}, "tags[0]"),
        ({"priority": 101}, "priority"),
        ({"priority": None}, "priority"),
        ({"prio": 1}, "prio"),
        ([], ""),
    ],
)
def test_a_change_that_cannot_be_is_refused_with_the_field(
    service: Service, changes: object, field: str
) -> None:
    search_id = service.submit()
    before = service.http.get(f"/searches/{search_id}").json()
    answer = amend(service, search_id, changes)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert service.http.get(f"/searches/{search_id}").json() == before


def test_a_search_of_higher_priority_goes_first(service: Service) -> None:
    first, urgent = service.submit(priority=4), service.submit()
    assert service.http.get(f"/searches/{first}").json()["priority"] == 4
    amended = amend(service, urgent, {"priority": 5}).json()
    assert (amended["priority"], amended["spec"]["priority"]) == (5, 5)
    with service.database.write() as session:
        now = datetime.now(UTC)
        assert jobs.preferred(session, f"{first}-0", now=now) == f"{urgent}-0"
        assert jobs.preferred(session, f"{urgent}-0", now=now) == f"{urgent}-0"
        assert jobs.preferred(session, "srch_0-0", now=now) == "srch_0-0"
    begin(service, urgent, 0)
    with service.database.write() as session:
        assert jobs.preferred(session, f"{first}-0", now=datetime.now(UTC)) == f"{first}-0"
    assert service.http.get("/searches?sort=-priority&limit=1").json()["items"][0]["priority"] >= 5
    tell(service, urgent, "cancel")


def test_only_what_the_client_has_seen_is_changed_if_it_says_so(service: Service) -> None:
    address = f"/searches/{service.submit()}"

    def change(method: str, tag: str) -> httpx.Response:
        body = {"name": tag} if method == "PATCH" else None
        return service.http.request(method, address, headers={"If-Match": tag}, json=body)

    seen = service.http.get(address).headers["etag"]
    renamed = change("PATCH", seen)
    assert renamed.status_code == 200
    for method in ("PATCH", "DELETE"):
        late = change(method, seen)
        assert (late.status_code, late.json()["type"]) == (412, "urn:matnas:problem:changed")
        assert renamed.headers["etag"] in late.json()["detail"]
    assert service.http.get(address).json()["name"] == seen
    assert change("PATCH", f'"x", {renamed.headers["etag"]}').status_code == 200
    assert change("DELETE", "*").status_code == 409  # it is as seen, but live
    service.http.post(f"{address}/cancel")
    assert change("DELETE", service.http.get(address).headers["etag"]).status_code == 204
    assert change("DELETE", "*").status_code == 404


def test_only_what_has_ended_is_deleted_and_then_whole(service: Service) -> None:
    search_id = service.submit(tags=["doomed"])
    assert service.http.delete(f"/searches/{search_id}").status_code == 409
    play(service, search_id)
    folder = service.files.home / "searches" / search_id
    assert folder.is_dir()
    answer = service.http.delete(f"/searches/{search_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not folder.exists()
    assert service.http.get(f"/searches/{search_id}").status_code == 404
    assert service.http.get("/searches?tag=doomed").json()["items"] == []
    assert service.http.get(f"/artifacts/{search_id}-0-network.json").status_code == 404
    assert service.http.delete(f"/searches/{search_id}").status_code == 404


def test_a_page_goes_on_when_what_it_ended_with_has_left_the_filter(service: Service) -> None:
    search_id = service.submit()
    play(service, search_id, until=1)
    link = f"/searches/{search_id}/trials?state=WAITING&limit=1"
    page = service.http.get(link).json()
    assert [item["number"] for item in page["items"]] == [1]
    begin(service, search_id, 1)
    rest = service.http.get(page["next"])
    assert rest.status_code == 200
    assert [item["number"] for item in rest.json()["items"]] == [2]


def test_lists_are_filtered_and_sorted_by_what_was_found(service: Service) -> None:
    ids = [service.submit(tags=["by loss"], name=name) for name in ("b", "a", "c")]
    play(service, ids[0])
    play(service, ids[1], until=2)

    def listed(query: str, path: str = "/searches") -> list[Any]:
        found, link = [], f"{path}?limit=1&{query}"
        while link:
            page = service.http.get(link).json()
            found += [item.get("number", item.get("id")) for item in page["items"]]
            link = page["next"]
        return found

    best, middle, none = ids
    assert listed("tag=by loss&sort=best_loss") == [best, middle, none]
    assert listed("tag=by loss&sort=-best_loss") == [middle, best, none]
    assert listed("tag=by loss&sort=name") == [middle, best, none]
    assert listed("tag=by loss&loss_to=0.4") == [best]
    assert listed("tag=by loss&loss_from=0.4") == [middle]
    trials = f"/searches/{best}/trials"
    assert listed("sort=validation_loss", trials) == [0, 3, 4, 1, 2, 5]
    assert listed("sort=-validation_loss", trials) == [2, 1, 4, 3, 0, 5]
    assert listed("loss_from=0.2&loss_to=0.4", trials) == [3, 4]
    assert listed("sort=-latency_ratio&kind=candidate", trials) == [4, 3]
    assert listed("worker=hand&state=COMPLETE&kind=baseline", trials) == [1, 2]
    assert listed("cost_to=1&sort=cost", trials) == []
    running = begin(service, middle, 2)
    report_curve(service, running, {1: 0.25})
    assert listed("loss_to=0.3", f"/searches/{middle}/trials") == [0, 2]


def test_a_cursor_is_of_one_order(service: Service) -> None:
    for _ in range(2):
        service.submit(tags=["ordered"])
    page = service.http.get("/searches?tag=ordered&limit=1").json()
    cursor = page["next"].partition("cursor=")[2]
    answer = service.http.get(f"/searches?tag=ordered&sort=name&cursor={cursor}")
    assert (answer.status_code, answer.json()["field"]) == (422, "cursor")
    assert "sorted by -created_at" in answer.json()["detail"]
    worst = f"/searches/{service.submit()}/trials?sort=cost&cursor={cursor}"  # of another kind, too
    assert "sorted by -created_at" in service.http.get(worst).json()["detail"]


@pytest.mark.parametrize("list_of", ["/searches", "/searches/srch_0/trials"])
def test_a_filter_takes_one_value(service: Service, list_of: str) -> None:
    answer = service.http.get(f"{list_of}?state=RUNNING&limit=5&state=WAITING")
    assert (answer.status_code, answer.json()["field"]) == (422, "state")


def test_workers_say_what_they_do(service: Service) -> None:
    with service.database.write() as session:
        jobs.note_worker(session, "hand", now=datetime.now(UTC))
    search_id = service.submit()
    begin(service, search_id, 0)
    (worker,) = service.http.get("/v1/workers").json()["items"]
    assert (worker["name"], worker["alive"]) == ("hand", True)
    assert f"{search_id}-0" in worker["trials"]


def test_head_is_get_without_its_body(service: Service) -> None:
    search_id = service.submit()
    for link in (f"/v1/searches/{search_id}", f"/searches/{search_id}/events", "/", "/healthz"):
        answer = service.http.head(link)
        assert (answer.status_code, answer.content) == (200, b"")
        assert "x-request-id" in answer.headers
    assert service.http.head("/v1/searches/srch_0").status_code == 404


def test_an_address_names_all_its_methods(service: Service) -> None:
    search_id = service.submit()
    answer = service.http.put(f"/v1/searches/{search_id}")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PATCH"
    assert service.http.delete("/searches").headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("known", ["{}", 'W/"x", {}', "*", '{} , "y"'])
def test_a_known_tag_is_found_in_any_list(service: Service, known: str) -> None:
    search_id = service.submit()
    play(service, search_id)
    for part in ("", "/spec", "/report", "/profile", "/trials/1", "/trials/1/structure.svg"):
        link = f"/v1/searches/{search_id}{part}"
        tag = service.http.get(link).headers["etag"]
        headers = {"If-None-Match": known.format(tag)}
        assert service.http.get(link, headers=headers).status_code == 304
        other = {"If-None-Match": f'"x{tag[3:]}'}
        assert service.http.get(link, headers=other).status_code == 200
