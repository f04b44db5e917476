"""Searches over HTTP: taken once, listed, told with an ETag, cancelled, or refused in full."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from service.db.tables import AnswerRow, EventRow, SearchRow, TrialRow
from tests.serving import SPEC, Service, begin, play, report_curve, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    with serving(home) as running:
        yield running


def messages(service: Service) -> int:
    return len(list((service.settings.home / "broker" / "messages").glob("*.msg")))


def kept(service: Service) -> list[int]:
    """How much there is of everything that a request could leave behind."""
    with service.database.read() as session:
        tables = (SearchRow, TrialRow, EventRow, AnswerRow)
        rows = [session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]
    return [*rows, messages(service)]


def test_a_search_is_taken_with_its_place_and_one_message(service: Service) -> None:
    before = messages(service)
    answer = service.http.post("/v1/searches", json=SPEC)
    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/searches/{body['id']}" == body["links"]["self"]
    assert (body["state"], body["progress"]["total"]) == ("QUEUED", 6)
    assert messages(service) == before + 1  # only the reference may start
    for link in ("self", "trials", "front", "artifacts", "page"):
        assert service.http.get(body["links"][link]).status_code == 200


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        (
            {"model": {"kind": "vitt"}},
            "model.kind",
            "model.kind is 'vitt'; did you mean 'vit'? Choose one of mlp, vit, mixer, gpt, matrix",
        ),
        ({"datset": "digits"}, "datset", "datset is not a field; did you mean dataset?"),
        (
            {"space": {"start_excess": {"low": 0.5, "high": 2}}},
            "space.start_excess",
            "start_excess begins at 0.5, but must be greater than or equal to 1",
        ),
        (
            {"compute": {"seconds": 1e300}},
            "compute.seconds",
            "compute.seconds is 1e+300; it must be less than or equal to 1000000000",
        ),
        (
            {"space": {"baselines": ["block_diagonal"] * 12}},
            "space.baselines",
            "space.baselines is a list; it must have at most 11 items",
        ),
        (
            {"model": {"kind": "mlp", "hiden": [3]}},
            "model.hiden",
            "model.hiden is not a field; did you mean hidden?",
        ),
        (
            {"budget": {"ratio": 1.5}},
            "budget.ratio",
            "budget.ratio is 1.5; it must be less than or equal to 1",
        ),
        ({"budget": {}}, "budget", "exactly one of ratio, ratios and absolute"),
        (
            {"dataset": None},
            "dataset",
            "is missing; for a mlp network choose one of digits, mnist-5k, fashion-mnist",
        ),
        (
            {"model": {"kind": "gpt"}},
            "dataset",
            "dataset is digits; for a gpt network choose one of state-of-the-union",
        ),
        (
            {"dataset": "fashion-mnist", "model": {"kind": "vit"}},
            "dataset",
            "/data; `make data` fetches it",
        ),
        (
            {"space": {"groups": [1, 0]}},
            "space.groups[1]",
            "space.groups[1] is 0; it must be greater than 0",
        ),
        (
            {"model": {"kind": "vit", "width": 30}},
            "model.heads",
            "heads is 4, but width 30 admits 1, 2, 3, 5, 6, 10, 15, 30",
        ),
        ({"seed": "3"}, "seed", "seed is '3'; it must be a whole number, without quotes: 3"),
        (
            {"compute": {"trials": 2.0}},
            "compute.trials",
            "compute.trials is 2.0; it must be a whole number",
        ),
        (
            {"space": {"groups": [1, True]}},
            "space.groups[1]",
            "space.groups[1] is True; it must be a whole number",
        ),
        (
            {"budget": {"ratio": "0.5"}},
            "budget.ratio",
            "budget.ratio is '0.5'; it must be a number, without quotes: 0.5",
        ),
        (
            {"model": "mpl"},
            "model",
            'is \'mpl\'; it must be an object, such as {"kind": "mlp", ...}',
        ),
        (
            {"space": {"structures": ["butterflies"]}},
            "space.structures[0]",
            "did you mean 'butterfly'? Choose one of 'low rank', 'SVDP', 'block diagonal', ",
        ),
        (
            {"budget": {"quantity": "mac", "ratio": 0.3}},
            "budget.quantity",
            "did you mean 'macs'? Choose one of macs, parameters, latency",
        ),
        ({"budget": {"ratio": 0.001}}, "budget", "cannot be reached: rank 1 in all 2 eligible"),
        ({"layers": {"include": ["convs.*"]}}, "layers.include", "'convs.*' matches no layer"),
        (
            {"model": {"kind": "matrix", "artifact": "art_0"}, "dataset": None},
            "model.artifact",
            "no such matrix has been uploaded",
        ),
    ],
)
def test_a_refused_spec_leaves_no_row_and_sends_no_message(
    service: Service, changes: dict[str, Any], field: str, sentence: str
) -> None:
    before = kept(service)
    answer = service.http.post(
        "/searches", json=SPEC | changes, headers={"Idempotency-Key": "again"}
    )
    body = answer.json()
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["field"] == field
    assert sentence in body["detail"]
    assert body["errors"] == [{"field": field, "sentence": body["detail"]}]
    assert kept(service) == before


def test_every_wrong_field_is_named_at_once(service: Service) -> None:
    answer = service.http.post(
        "/searches", json={"model": {}, "budget": {"ratio": "x"}, "seed": -1}
    )
    fields = {error["field"] for error in answer.json()["errors"]}
    assert fields == {"model.kind", "budget.ratio", "seed"}


@pytest.mark.parametrize(
    ("content", "kind", "status", "detail"),
    [
        (b"{", "application/json", 422, "the body is not JSON"),
        (b"[]", "application/json", 422, "the body must be a JSON object"),
        (b"{}", "text/plain", 415, "send the body as application/json"),
        (b'{"name": "\\ud800"}', "application/json", 422, "name is '\\ud800'"),
        (b'{"\\ud800": 1}', "application/json", 422, "the body is '\\ud800'"),
        (b'{"name": "\\u0000"}', "application/json", 422, "NUL"),
        (b'"\xff"', "application/json", 400, "parsing the body"),
    ],
)
def test_a_malformed_body_is_told_so(
    service: Service, content: bytes, kind: str, status: int, detail: str
) -> None:
    before = kept(service)
    answer = service.http.post("/searches", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert kept(service) == before


def test_the_same_key_and_body_give_the_stored_answer(service: Service) -> None:
    headers = {"Idempotency-Key": "one"}
    spec = SPEC | {"name": "only once"}
    first = service.http.post("/searches", json=spec, headers=headers)
    again = service.http.post("/v1/searches", json=spec, headers=headers)
    other = service.http.post("/searches", json=spec | {"seed": 7}, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert other.status_code == 409
    assert len(service.http.get("/searches?name=only once").json()["items"]) == 1


def test_of_eighty_requests_at_once_those_with_one_key_make_one_search(service: Service) -> None:
    def ask(number: int) -> int:
        headers = {"Idempotency-Key": "shared"} if number % 2 else {}
        return service.http.post("/searches", json=spec, headers=headers).status_code

    spec = SPEC | {"name": "crowd"}

    with ThreadPoolExecutor(40) as pool:
        told = list(pool.map(ask, range(80)))
    # With the key while its first request is being answered, that is said; afterwards, the answer.
    assert set(told[0::2]) == {202}
    assert 202 in told[1::2]
    assert set(told[1::2]) <= {202, 409}
    assert len(service.http.get("/searches?limit=200&name=crowd").json()["items"]) == 41


def test_lists_are_filtered_sorted_and_paged(service: Service) -> None:
    names = [f"search {number}" for number in range(5)]
    for name in names:
        service.submit(name=name, tags=["listed", *(["odd"] if name[-1] in "13" else [])])
    service.http.post(f"/searches/{service.submit(name='gone')}/cancel")
    found, link = [], "/searches?limit=2&state=QUEUED&sort=created_at&tag=listed"
    while link:
        page = service.http.get(link).json()
        found += [item["name"] for item in page["items"]]
        link = page["next"]
    assert found == names

    def listed(query: str) -> list[str]:
        items = service.http.get(f"/searches?{query}").json()["items"]
        return [item["name"] for item in items]

    assert listed("tag=odd") == ["search 3", "search 1"]
    assert listed("state=CANCELLED&name=gone") == ["gone"]
    assert listed("name=search 2&model=mlp&dataset=digits") == ["search 2"]
    assert listed("model=vit") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=201", "limit"),
        ("cursor=xyz", "cursor"),
        ("cursor=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzIzOjU5IiwgInNyY2hfMSJd", "cursor"),
        ("cursor=WyIyMDI2LTAxLTAxVDAwOjAwOjAwKzAwOjAwIiwgIlx1ZDgwMCJd", "cursor"),
        ("state=LOST", "state"),
        ("color=red", "color"),
        ("created_after=2026-01-01T00:00:00", "created_after"),
        ("created_after=0001-01-01T00:00:00%2B23:00", "created_after"),
    ],
)
def test_a_list_refuses_what_it_does_not_know(service: Service, query: str, field: str) -> None:
    answer = service.http.get(f"/searches?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_a_search_that_has_not_changed_is_304(service: Service) -> None:
    search_id = service.submit()
    first = service.http.get(f"/searches/{search_id}")
    assert first.headers["retry-after"] == "2"
    headers = {"If-None-Match": first.headers["etag"]}
    assert service.http.get(f"/searches/{search_id}", headers=headers).status_code == 304
    report_curve(service, begin(service, search_id, 0), {5: 0.5})
    changed = service.http.get(f"/searches/{search_id}", headers=headers)
    assert changed.status_code == 200
    assert changed.json()["progress"]["phase"] == "reference: training, epoch 5 of 10"
    assert changed.json()["progress"]["eta_seconds"] > 0


def test_an_ended_search_asks_nobody_to_come_back(service: Service) -> None:
    search_id = service.submit()
    play(service, search_id)
    answer = service.http.get(f"/searches/{search_id}")
    body = answer.json()
    assert "retry-after" not in answer.headers
    assert (body["state"], body["best"]["name"]) == ("SUCCEEDED", "candidate 3")
    assert body["best"]["cost"] <= body["budget"]


def test_cancelling_twice_is_harmless_and_too_late_is_a_conflict(service: Service) -> None:
    search_id = service.submit()
    begin(service, search_id, 0)
    for _ in range(2):
        answer = service.http.post(f"/searches/{search_id}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "STOPPING")
    done = service.submit()
    play(service, done)
    assert service.http.post(f"/searches/{done}/cancel").status_code == 409


def test_only_data_that_are_there_can_be_searched(tmp_path: Path) -> None:
    (tmp_path / "home" / "data" / "state-of-the-union").mkdir(parents=True)
    model = {"kind": "gpt", "context": 32}
    with serving(tmp_path / "home") as one:
        one.submit(model=model, dataset="state-of-the-union")
        refused = one.http.post("/searches", json=SPEC | {"dataset": "fashion-mnist"})
        assert refused.status_code == 422
        missing = {data["name"]: data["missing"] for data in one.http.get("/datasets").json()}
        assert [name for name, is_missing in missing.items() if is_missing] == ["fashion-mnist"]
    # A folder that is not on this machine is the workers' to look into.
    with serving(tmp_path / "other", data=tmp_path / "elsewhere") as two:
        two.submit(dataset="fashion-mnist")


def clone(service: Service, search_id: str, changes: dict[str, Any], **headers: str) -> Any:
    return service.http.post(f"/searches/{search_id}/clone", json=changes, headers=headers)


def test_a_clone_has_the_changed_fields_and_knows_the_candidates(service: Service) -> None:
    first = service.submit(name="loose", space=SPEC["space"] | {"groups": [1, 2]})
    play(service, first)
    answer = clone(service, first, {"budget": {"ratio": 0.2}, "compute": {"trials": 5}})
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/searches/{body['id']}" != f"/v1/searches/{first}"
    assert (body["name"], body["spec"]["budget"]["ratio"]) == ("loose", 0.2)
    assert body["spec"]["compute"]["trials"] == 5
    assert body["spec"]["space"]["groups"] == [1, 2]
    assert body["warm_start"]["search_id"] == first == body["spec"]["warm_start"]
    assert (body["warm_start"]["told"], body["warm_start"]["outside"]) == (0, 0)  # no settings made
    assert "told of 0 candidates" in service.http.get(f"/view/{body['id']}").text


def test_a_clone_changes_the_way_in_which_the_budget_is_given(service: Service) -> None:
    first = service.submit()
    play(service, first)
    several = clone(service, first, {"budget": {"ratios": [0.3, 0.2]}}).json()
    assert several["spec"]["budget"]["ratio"] is None
    again = clone(service, several["id"], {"budget": {"ratio": 0.25}, "warm_start": None}).json()
    assert (again["spec"]["budget"]["ratios"], again["warm_start"]) == (None, None)


def test_a_clone_is_made_once_for_a_key(service: Service) -> None:
    first = service.submit()
    play(service, first)
    key = {"Idempotency-Key": "clone-once"}
    one, two = (clone(service, first, {"seed": 5}, **key) for _ in range(2))
    assert one.status_code == two.status_code == 202
    assert one.json() == two.json()
    assert clone(service, first, {"seed": 6}, **key).status_code == 409


def test_what_has_not_ended_can_be_cloned_without_a_warm_start_alone(service: Service) -> None:
    first = service.submit()
    refused = clone(service, first, {"seed": 1})
    assert refused.status_code == 409
    assert '"warm_start": null' in refused.json()["detail"]
    assert clone(service, first, {"seed": 1, "warm_start": None}).status_code == 202


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"budget": {"ratio": 2}}, "budget.ratio"),
        ({"colour": 1}, "colour"),
        ({"budget": {"ratio": 0.0001}}, "budget"),
        ({"model": {"hidden": [16]}}, "warm_start"),
        ({"warm_start": "srch_" + "0" * 32}, "warm_start"),
        ({"warm_start": "srch_1"}, "warm_start"),
    ],
)
def test_a_clone_that_cannot_work_is_refused_with_the_field(
    service: Service, changes: dict[str, Any], field: str
) -> None:
    first = service.submit()
    service.http.post(f"/searches/{first}/cancel")
    before = kept(service)
    answer = clone(service, first, changes)
    assert answer.status_code == 422
    assert answer.json()["field"] == field
    assert kept(service) == before


def test_nothing_is_cloned_of_nothing(service: Service) -> None:
    assert clone(service, "srch_" + "0" * 32, {}).status_code == 404
    first = service.submit()
    assert service.http.post(f"/searches/{first}/clone", json=[1]).status_code == 422
    plain = service.http.post(f"/searches/{first}/clone", content="{}")
    assert plain.status_code == 415
