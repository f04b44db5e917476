"""The pages in a real Chromium: they render, nothing is refused by their policy, and they move."""

from collections.abc import Iterator
from threading import Event

import pytest

from service import jobs
from service.errors import Unavailable
from tests.browser.chromium import PATH, Page, chromium
from tests.serving import Service, begin, play, report_curve, serving

pytestmark = pytest.mark.skipif(
    not PATH, reason="there is no Chromium; apt-get install chromium to run these"
)


OPEN = "document.querySelector('#{}').open"


def state(named: str) -> str:
    return f"document.querySelector('h1')?.innerText.includes('{named}')"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_is_drawn_and_breaks_no_rule(
    service: Service, page: Page, width: int
) -> None:
    search_id = service.submit(name="drawn")
    play(service, search_id)
    compared = f"/view/compare?trials={search_id}-1&trials={search_id}-3"
    for path in ("/", f"/view/{search_id}", compared):
        page.open(service.url + path, width=width, dark=path == "/")
        page.wait("[...document.images].every((one) => one.loading == 'lazy' || one.complete)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert len(page.picture()) > 5_000
    page.evaluate("document.querySelectorAll('.drawing img').forEach((i) => i.scrollIntoView())")
    page.wait("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert page.complaints == []


def test_both_colour_schemes_are_served(service: Service, page: Page) -> None:
    colours = []
    for dark in (False, True):
        page.open(service.url, dark=dark)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


def test_a_live_page_shows_what_changed_keeps_what_was_chosen_and_stops(
    service: Service, page: Page
) -> None:
    search_id = service.submit(name="live")
    play(service, search_id, until=2)
    claim = begin(service, search_id, 2)
    page.open(f"{service.url}/view/{search_id}")
    page.evaluate("document.querySelector('input[type=checkbox]').click()")
    report_curve(service, claim, {3: 0.125})
    page.wait("document.body.innerText.includes('epoch 3 of 6')")
    assert page.evaluate("document.body.innerText.includes('0.1250')")
    assert page.evaluate("document.querySelectorAll('input:checked').length") == 1
    assert page.complaints == []


def test_a_live_page_that_was_refused_its_events_asks_again(
    service: Service, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_id = service.submit(name="patient")
    play(service, search_id, until=2)
    claim = begin(service, search_id, 2)
    asked = Event()

    def away(*_: object) -> None:
        asked.set()
        raise Unavailable("the database does not answer just now")

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "pulses", away)
        page.open(f"{service.url}/view/{search_id}")
        assert asked.wait(15)
    report_curve(service, claim, {3: 0.125})
    page.wait("document.body.innerText.includes('epoch 3 of 6')")
    # That was the page, asked for once; what comes later is told by the events.
    report_curve(service, claim, {4: 0.0625})
    page.wait("document.body.innerText.includes('epoch 4 of ')")


def test_a_search_is_paused_resumed_and_cancelled_by_keyboard(service: Service, page: Page) -> None:
    search_id = service.submit(name="by hand")
    page.open(f"{service.url}/view/{search_id}")
    page.evaluate("document.querySelector('#do-rest').focus()")
    page.press("Enter")
    page.wait(state("paused"))
    assert page.evaluate("document.activeElement.innerText") == "resume"
    page.press(" ")
    page.wait(state("queued"))
    assert page.evaluate("document.activeElement.innerText") == "pause"
    page.evaluate("document.querySelector('#do-cancel').focus()")
    page.press("Enter")
    page.wait(OPEN.format("ask"))
    assert page.evaluate("document.querySelector('#ask').innerText.includes('cannot go on')")
    page.press("Escape")
    page.wait(f"!({OPEN.format('ask')})")
    page.wait("document.activeElement.id === 'do-cancel'")  # though the page was drawn anew
    # Nothing more is begun until the dialog has told of its end, a moment later.
    page.wait(f"(document.activeElement.click(), {OPEN.format('ask')})")
    assert page.evaluate("document.activeElement.innerText") == "no"
    page.press("Tab")
    page.press("Enter")
    page.wait(state("cancelled"))
    assert page.complaints == []


def test_what_runs_is_killed_once_that_is_confirmed(service: Service, page: Page) -> None:
    search_id = service.submit(name="to be killed")
    begin(service, search_id, 0)
    page.open(f"{service.url}/view/{search_id}")
    page.evaluate("document.querySelector('#do-kill').click()")
    page.wait(OPEN.format("ask"))
    assert service.http.get(f"/v1/searches/{search_id}").json()["state"] == "RUNNING"
    page.evaluate("document.querySelector('#ask-yes').click()")
    page.wait(state("stopping"))
    assert service.http.get(f"/v1/searches/{search_id}").json()["reason"] == "killed"
    assert page.complaints == []


def test_a_refusal_is_told_and_an_ended_search_is_cloned_and_deleted(
    service: Service, page: Page
) -> None:
    search_id = service.submit(name="first")
    page.open(f"{service.url}/view/{search_id}")
    # What the page has not heard of yet: it is told what the service answers.
    stale = f"{{act: 'DELETE', to: '/v1/searches/{search_id}'}}"
    page.evaluate(f"Object.assign(document.querySelector('#do-rest').dataset, {stale})")
    page.evaluate("document.querySelector('#do-rest').click()")
    page.wait("!document.querySelector('#said').hidden")
    assert "cancel it first" in page.evaluate("document.querySelector('#said').innerText")
    service.http.post(f"/v1/searches/{search_id}/cancel")
    page.wait(state("cancelled"))
    page.evaluate("document.querySelector('#do-clone').click()")
    page.wait(OPEN.format("clone"))
    page.evaluate("document.querySelector('#clone-share').value = '0.02'")
    page.evaluate("document.querySelector('#clone button[type=submit]').click()")
    page.wait("!document.querySelector('#clone-said').hidden")
    assert "budget" in page.evaluate("document.querySelector('#clone-said').innerText")
    page.evaluate("document.querySelector('#clone-share').value = '20'")
    page.evaluate("document.querySelector('#clone-name').value = 'second'")
    page.evaluate("document.querySelector('#clone button[type=submit]').click()")
    page.wait(
        f"location.pathname.startsWith('/view/srch') && !location.href.includes('{search_id}')"
    )
    page.wait(state("second"))
    cloned = service.http.get(f"/v1/searches/{page.evaluate('location.pathname').split('/')[2]}")
    assert cloned.json()["spec"]["budget"]["ratio"] == 0.2
    assert cloned.json()["warm_start"]["search_id"] == search_id
    page.open(f"{service.url}/view/{search_id}")
    page.evaluate("document.querySelector('#do-delete').click()")
    page.wait(OPEN.format("ask"))
    page.evaluate("document.querySelector('#ask-yes').click()")
    page.wait("location.pathname == '/'")
    assert service.http.get(f"/v1/searches/{search_id}").status_code == 404
    refused = [one for one in page.complaints if "status of 4" not in str(one)]
    assert refused == []
