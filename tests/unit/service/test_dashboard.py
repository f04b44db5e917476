"""The pages, as the server renders them: what they show, and that nothing in them runs."""

import re
from collections.abc import Iterator

import pytest

from service.dashboard import pages
from tests.serving import SPEC, Service, begin, play, report_curve, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


def test_an_empty_list_says_what_to_do(service: Service) -> None:
    assert "matnas submit" in service.http.get("/").text


def test_the_list_leads_to_every_search_a_page_at_a_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE_LENGTH", 5)
    ids = {service.submit() for _ in range(6)}
    first = service.http.get("/").text
    older = re.search(r'href="(/\?cursor=[^"]+)"', first)
    assert older is not None
    found = set(re.findall(r"/view/(srch_\w+)", first + service.http.get(older[1]).text))
    assert found == ids


def test_a_finished_search_shows_its_evidence_and_its_winner(service: Service) -> None:
    search_id = service.submit(name="finished")
    play(service, search_id)
    page = service.http.get(f"/view/{search_id}").text
    for words in (
        "uniform_low_rank",
        "The winner: candidate 3",
        "1 tile",
        "share of budget",
        "low rank, 1",
    ):
        assert words in page
    assert page.count("run dense") == page.count("run sliced") == 1
    assert f"/v1/searches/{search_id}/trials/3/structure.svg" in page
    assert "data-events" not in page


def test_a_budget_in_time_shows_times_where_others_show_macs(service: Service) -> None:
    search_id = service.submit(budget={"quantity": "latency", "ratio": 0.3})
    listed = service.http.get("/").text
    assert "30.0 % of latency" in listed
    waiting = service.http.get(f"/v1/searches/{search_id}").json()
    assert (waiting["budget"], waiting["dense_cost"]) == (300_000, 1_000_000)
    assert waiting["smallest_cost"] is None
    play(service, search_id)
    page = " ".join(service.http.get(f"/view/{search_id}").text.split())
    for words in (
        "layers' latency ÷ dense",
        "latency ÷ dense, predicted",
        "0.65",
        "for 30.0 % latency:",
        "the searched layers take 2.00 ms dense, the whole network 4.00 ms",
        "at least 12.0 % of that",
        "15.0 %",  # what the winner's layers take
    ):
        assert words in page, words
    ended = service.http.get(f"/v1/searches/{search_id}").json()
    assert ended["smallest_cost"] == 120_000
    structure = service.http.get(f"/v1/searches/{search_id}/trials/3/structure").json()
    assert structure["cost"] == ended["best"]["cost"]
    prices = [layer["share"] for layer in structure["layers"]]
    assert prices == [pytest.approx(0.3, abs=1e-4), pytest.approx(0.3, abs=1e-4), None]


def test_a_budget_in_time_that_cannot_be_kept_is_refused_with_its_field(service: Service) -> None:
    body = SPEC | {
        "budget": {"quantity": "latency", "ratio": 0.3},
        "space": {"starts": ["scratch"]},
    }
    answer = service.http.post("/searches", json=body)
    assert answer.status_code == 422
    assert "space.starts" in answer.text
    assert "take answer, output or uniform" in answer.text


def test_a_running_search_is_live(service: Service) -> None:
    search_id = service.submit()
    report_curve(service, begin(service, search_id, 0), {4: 0.25})
    page = service.http.get(f"/view/{search_id}").text
    assert f'data-events="/v1/searches/{search_id}/events"' in page
    assert "reference: training, epoch 4 of 8" in page
    assert "0.2500" in page


def test_networks_are_shown_side_by_side(service: Service) -> None:
    search_id = service.submit()
    play(service, search_id)
    page = service.http.get(f"/view/compare?trials={search_id}-1&trials={search_id}:3").text
    assert page.count("structure.svg") == 2
    assert "low rank, 4" in page
    assert "1 tile" in page


def test_what_is_wrong_is_a_page_too(service: Service) -> None:
    for path, status in (("/view/srch_0", 404), ("/view/compare", 422), ("/?cursor=x", 422)):
        answer = service.http.get(path)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")


def test_a_page_s_cursor_may_be_as_long_as_the_api_s(service: Service) -> None:
    answers = [service.http.get(f"{path}?cursor={'x' * 1000}") for path in ("/", "/v1/searches")]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[1].json()["detail"] in answers[0].text


def test_what_users_write_is_text(service: Service) -> None:
    name = "<script>alert(1)</script>"
    search_id = service.submit(name=name, tags=[name])
    for path in ("/", f"/view/{search_id}"):
        page = service.http.get(path).text
        assert "<script>alert" not in page
        assert "&lt;script&gt;" in page


def test_pages_hold_nothing_that_their_policy_forbids(service: Service) -> None:
    search_id = service.submit()
    play(service, search_id)
    for path in ("/", f"/view/{search_id}", f"/view/compare?trials={search_id}-1,{search_id}-3"):
        page = service.http.get(path).text
        assert not re.search(r"\sstyle=|\son\w+=|<style|<script>|https?://", page)
        for address in set(re.findall(r'(?:src|href)="([^"]+)"', page)):
            assert service.http.get(address).status_code == 200, address
