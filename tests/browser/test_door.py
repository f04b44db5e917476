"""A real Chromium at the door: it signs in, and a name that was bound anew leads it nowhere."""

from collections.abc import Iterator

import pytest

from service.credentials import SCOPES
from tests.browser.chromium import PATH, Page, chromium
from tests.serving import Service, serving

pytestmark = pytest.mark.skipif(
    not PATH, reason="there is no Chromium; apt-get install chromium to run these"
)

EVIL = "evil.example"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    # As an attacker's name server would have it: their name is this machine.
    rebound = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"
    with chromium(tmp_path_factory.mktemp("chromium"), rebound) as opened:
        yield opened


def test_a_rebound_name_is_not_answered(service: Service, page: Page) -> None:
    search_id = service.submit(name="private")
    page.open(service.url.replace("127.0.0.1", EVIL) + "/v1/searches")
    said = page.evaluate("document.body.innerText")
    assert "does not answer to that Host" in said
    assert search_id not in said
    # Nor may that site's scripts read from, or write to, the address itself.
    tried = (
        "window.told = []; for (const method of ['GET', 'POST']) {"
        f"fetch('{service.url}/v1/searches', {{method}})"
        ".then((answer) => told.push('answered'), () => told.push('refused')) }"
    )
    page.evaluate(tried)
    page.wait("told.length == 2")
    assert page.evaluate("told.join()") == "refused,refused"


def test_a_person_signs_in_works_and_signs_out(service: Service, page: Page) -> None:
    search_id = service.submit(name="guarded")
    asked = {"name": "me", "scopes": list(SCOPES)}
    key = service.http.post("/v1/keys", json=asked).json()["key"]
    page.open(f"{service.url}/view/{search_id}", width=390)
    assert page.evaluate("location.pathname") == "/login"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.complaints == []
    page.evaluate(f"document.querySelector('#key').value = '{key}'")
    page.evaluate("document.querySelector('form.login').submit()")
    page.wait(f"location.pathname == '/view/{search_id}'")
    page.wait("document.readyState == 'complete'")  # scripts know what a button does
    assert page.evaluate("document.cookie") == ""  # which no script can read
    page.evaluate("document.querySelector('#do-cancel').click()")
    page.evaluate("document.querySelector('#ask-yes').click()")
    page.wait("document.querySelector('h1').innerText.includes('cancelled')")
    page.evaluate("document.querySelector('form[action=\"/logout\"]').submit()")
    page.wait("location.pathname == '/login'")
    page.open(service.url)
    assert page.evaluate("location.pathname") == "/login"
    assert page.complaints == []
