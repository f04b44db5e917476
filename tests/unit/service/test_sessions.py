"""Sessions: a key is exchanged for a cookie, which opens what the key opens and nothing longer."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import select, update

from service import jobs
from service.api.routes import events
from service.credentials import SCOPES, Scope
from service.db.tables import SessionRow
from tests.serving import SPEC, Service, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        make_key(running)
        yield running


@pytest.fixture
def browser(service: Service) -> Iterator[httpx.Client]:
    """A client that keeps cookies, and says where it is as browsers do."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as opened:
        opened.headers["Origin"] = service.url
        yield opened


def make_key(service: Service, *scopes: Scope) -> str:
    with service.database.write() as session:
        now = datetime.now(UTC)
        _, text = jobs.create_key(
            session, name="person", scopes=scopes or SCOPES, expires_at=None, now=now
        )
    return text


def sign_in(browser: httpx.Client, key: str, to: str = "/") -> httpx.Response:
    return browser.post("/login", data={"key": f" {key} ", "next": to})


def test_a_person_is_sent_to_the_login_and_back(service: Service, browser: httpx.Client) -> None:
    asked = browser.get("/view/srch_0?x=1")
    assert asked.headers["location"] == "/login?next=%2Fview%2Fsrch_0%3Fx%3D1"
    form = browser.get(asked.headers["location"])
    assert 'value="/view/srch_0?x=1"' in form.text
    assert "sign out" not in form.text
    gone_on = sign_in(browser, make_key(service), to="/view/srch_0?x=1")
    assert (gone_on.status_code, gone_on.headers["location"]) == (303, "/view/srch_0?x=1")
    assert browser.get("/view/srch_0?x=1").status_code == 404
    assert "sign out" in browser.get("/").text


def test_the_cookie_is_for_no_script_and_no_other_site(
    service: Service, browser: httpx.Client
) -> None:
    key = make_key(service)
    answer = sign_in(browser, key)
    said = answer.headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"):
        assert word in said
    assert "Secure" not in said
    assert key not in said
    assert answer.headers["cache-control"] == "no-store"
    behind_tls = browser.post("/login", data={"key": key}, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in behind_tls.headers["set-cookie"]
    stored = (service.settings.home / "matnas.db-wal").read_bytes()
    assert browser.cookies["matnas_session"].encode() not in stored


@pytest.mark.parametrize(
    "to", ["https://evil.example/", "//evil.example", "/\\evil.example", "/v1/keys", "view", ""]
)
def test_nobody_is_sent_elsewhere(service: Service, browser: httpx.Client, to: str) -> None:
    assert sign_in(browser, make_key(service), to=to).headers["location"] == "/"


def test_a_bad_key_is_told_on_the_page(service: Service, browser: httpx.Client) -> None:
    for form in ({"key": "x"}, {}, {"key": "<b>"}):
        answer = browser.post("/login", data=form)
        assert answer.status_code in {401, 422}
        assert "set-cookie" not in answer.headers
        assert "<b>" not in answer.text
    assert "this is no key of this server" in browser.post("/login", data={"key": "x"}).text


def test_who_has_no_key_and_no_session_waits_for_no_lock(
    service: Service, browser: httpx.Client
) -> None:
    browser.timeout = httpx.Timeout(5)
    with service.database.write() as session:
        session.execute(select(1))  # on SQLite, which has one writer
        assert browser.post("/login", data={"key": "x"}).status_code == 401
        browser.cookies["matnas_session"] = "x"
        assert browser.post("/logout").status_code == 303


def test_a_session_opens_what_its_key_opens(service: Service, browser: httpx.Client) -> None:
    sign_in(browser, make_key(service, "read"))
    assert browser.get("/v1/searches").status_code == 200
    assert browser.post("/v1/searches", json=SPEC).status_code == 403
    assert browser.get("/v1/keys").status_code == 403
    sign_in(browser, make_key(service))
    search_id = browser.post("/v1/searches", json=SPEC).json()["id"]
    assert "data-act" in browser.get(f"/view/{search_id}").text
    sign_in(browser, make_key(service, "read"))
    assert "data-act" not in browser.get(f"/view/{search_id}").text


def test_a_write_by_session_says_where_it_comes_from(
    service: Service, browser: httpx.Client
) -> None:
    sign_in(browser, make_key(service))
    cookies = dict(browser.cookies)
    with httpx.Client(
        base_url=service.url, cookies=cookies, trust_env=False, timeout=30
    ) as nameless:
        assert nameless.get("/v1/searches").status_code == 200
        for path in ("/v1/searches", "/logout", "/login"):
            assert nameless.post(path, json=SPEC if "v1" in path else None).status_code in {
                403,
                422,
            }
        assert nameless.post("/v1/searches", json=SPEC).status_code == 403
        assert nameless.post("/logout").status_code == 403
        foreign = {"Origin": "http://evil.example"}
        assert nameless.post("/v1/searches", json=SPEC, headers=foreign).status_code == 403
        same = {"Sec-Fetch-Site": "same-origin"}
        assert nameless.post("/v1/searches", json=SPEC, headers=same).status_code == 202


def test_signing_out_ends_the_session_everywhere(service: Service, browser: httpx.Client) -> None:
    sign_in(browser, make_key(service))
    kept = dict(browser.cookies)
    assert browser.post("/logout").headers["location"] == "/login"
    assert dict(browser.cookies) == {}
    browser.cookies.update(kept)
    assert browser.get("/").status_code == 303


def sign_out(service: Service, browser: httpx.Client) -> None:
    del service
    assert browser.post("/logout").status_code == 303


def run_out(service: Service, browser: httpx.Client) -> None:
    del browser
    past = datetime.now(UTC) - timedelta(seconds=1)
    with service.database.write() as session:
        session.execute(update(SessionRow).values(expires_at=past))


@pytest.mark.parametrize("end", [sign_out, run_out])
def test_a_session_s_streams_end_with_it(
    service: Service,
    browser: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Service, httpx.Client], None],
) -> None:
    monkeypatch.setattr(events, "POLL_SECONDS", 0.05)
    sign_in(browser, make_key(service))
    link = f"/v1/searches/{browser.post('/v1/searches', json=SPEC).json()['id']}/events"
    with browser.stream("GET", link, timeout=5) as stream:
        lines = stream.iter_lines()
        assert next(lines)
        end(service, browser)
        for _ in lines:
            pass  # to its end, or to the client's patience


def test_a_session_ends_with_its_key_and_with_its_time(
    service: Service, browser: httpx.Client
) -> None:
    key = make_key(service)
    sign_in(browser, key)
    assert browser.get("/").status_code == 200
    with service.database.write() as session:
        jobs.revoke_key(session, key[:16], now=datetime.now(UTC))
    assert browser.get("/").status_code == 303
    assert browser.get("/v1/searches").status_code == 401
    sign_in(browser, make_key(service))
    assert browser.get("/").status_code == 200
    past = datetime.now(UTC) - timedelta(seconds=1)
    with service.database.write() as session:
        session.execute(update(SessionRow).values(expires_at=past))
    assert browser.get("/").status_code == 303
    sign_in(browser, make_key(service))
    with service.database.read() as session:
        assert len(session.scalars(select(SessionRow)).all()) == 1  # the others are forgotten
