"""Webhooks over REST: made, changed, listed and removed; the secret is shown once."""

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from standardwebhooks import Webhook

from service.outgoing import may_be_reached
from service.settings import Settings
from tests.receiving import receiving
from tests.serving import Service, play, serving
from worker.deliveries import deliver

HOOK = {"url": "https://example.org/hook"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(
        tmp_path_factory.mktemp("home"), webhook_networks=[ip_network("127.0.0.0/8")]
    ) as running:
        yield running


def made(service: Service, **changes: Any) -> dict[str, Any]:
    answer = service.http.post("/webhooks", json=HOOK | changes)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/webhooks/{found['id']}"
    return found


def test_a_webhook_is_made_changed_listed_and_removed(service: Service) -> None:
    hook = made(service)
    here = f"/webhooks/{hook['id']}"
    assert hook["secret"].startswith("whsec_")
    assert hook["kinds"] == ["search.cancelled", "search.failed", "search.succeeded"]
    shown = service.http.get(here).json()
    assert shown in service.http.get("/webhooks").json()["items"]
    assert "secret" not in shown
    changed = service.http.patch(here, json={"kinds": ["trial.lost"], "enabled": False}).json()
    assert (changed["kinds"], changed["enabled"]) == (["trial.lost"], False)
    assert changed["url"] == HOOK["url"]
    assert changed["sentence"] == "it was disabled by a client"
    renewed = service.http.post(f"{here}/secret")
    assert renewed.json()["secret"] != hook["secret"]
    assert [service.http.delete(here).status_code for _ in range(2)] == [204, 204]
    assert service.http.get(here).json()["type"] == "urn:matnas:problem:webhook_not_found"


def test_a_search_is_told_of_to_the_end_and_the_deliveries_are_listed(service: Service) -> None:
    search_id, other = service.submit(), service.submit()
    with receiving() as receiver:
        kinds = ["search.running", "trial.complete", "search.succeeded"]
        hook = made(service, url=receiver.url, kinds=kinds, search_id=search_id)
        play(service, search_id)
        play(service, other)
        while deliver(service.settings, service.database):
            pass
    bodies = [
        Webhook(hook["secret"]).verify(
            one.body, {name.lower(): value for name, value in one.headers.items()}
        )
        for one in receiver.received
    ]
    assert [bodies[0]["type"], bodies[-1]["type"]] == ["search.running", "search.succeeded"]
    assert {body["data"]["search_id"] for body in bodies} == {search_id}
    link, listed = f"/webhooks/{hook['id']}/deliveries?limit=3&state=DELIVERED", []
    while link:
        page = service.http.get(link).json()
        listed += page["items"]
        link = page["next"]
    assert [one["event_id"] for one in listed] == [
        json.loads(one.body)["data"]["event_id"] for one in reversed(receiver.received)
    ]
    again = f"/webhooks/{hook['id']}/deliveries/{listed[0]['event_id']}/again"
    assert service.http.post(again).status_code == 202
    waiting = service.http.get(f"/webhooks/{hook['id']}/deliveries?state=WAITING").json()
    assert [one["event_id"] for one in waiting["items"]] == [listed[0]["event_id"]]
    problem = service.http.post(f"/webhooks/{hook['id']}/deliveries/999999/again").json()
    assert problem["type"] == "urn:matnas:problem:delivery_not_found"
    assert service.http.delete(f"/webhooks/{hook['id']}").status_code == 204


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": "ftp://example.org"}, "url"),
        ({"url": "nonsense"}, "url"),
        ({"url": "https://user:password@example.org"}, "url"),
        ({"url": "http://10.1.2.3/x"}, "url"),
        ({"url": "http://[::1]/x"}, "url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "url"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["search.exploded"]}, "kinds[0]"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_what_could_never_work_is_refused(
    service: Service, changes: dict[str, Any], field: str
) -> None:
    answer = service.http.post("/webhooks", json=HOOK | changes)
    assert answer.status_code == 422
    assert answer.json()["field"] == field


def test_an_unknown_search_has_no_webhook(service: Service) -> None:
    answer = service.http.post("/webhooks", json=HOOK | {"search_id": "srch_0"})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        *((one, True) for one in ("93.184.215.14", "2606:2800:21f::1", "10.9.8.7")),
        *((one, False) for one in ("127.0.0.1", "10.1.1.1", "172.16.0.1", "192.168.1.1")),
        *((one, False) for one in ("169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1")),
        *((one, False) for one in ("255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1")),
        *((one, False) for one in ("::1", "::", "fe80::1", "fc00::1", "ff02::1", "fec0::1")),
        *((one, False) for one in ("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::")),
        ("2001:db8::1", False),
    ],
)
def test_only_public_addresses_are_reached_and_what_is_allowed(address: str, reached: bool) -> None:
    allowed = (ip_network("10.9.0.0/16"),)
    assert may_be_reached(ip_address(address), allowed) == reached


def test_networks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATNAS_WEBHOOK_NETWORKS", "10.0.0.0/8, fd00::/8")
    assert [str(one) for one in Settings().webhook_networks] == ["10.0.0.0/8", "fd00::/8"]
