"""The pages in a real Chromium: they render, nothing is refused by their policy, and they move."""

from collections.abc import Iterator

import pytest

from tests.browser.chromium import PATH, Page, chromium
from tests.serving import Service, begin, play, report_curve, serving

pytestmark = pytest.mark.skipif(
    not PATH, reason="there is no Chromium; apt-get install chromium to run these"
)


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
    page.evaluate("document.querySelector('button[data-post]').click()")
    page.wait("document.querySelector('h1').innerText.includes('stopping')")
    assert page.complaints == []
