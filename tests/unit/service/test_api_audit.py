"""What administrators do is written down, with who did it, and outlives what it was done to."""

from pathlib import Path
from typing import Any

from service import administration
from tests.serving import Service, play, serving


def acts(service: Service, **headers: str) -> list[dict[str, Any]]:
    link, found = "/audit?limit=3", []
    while link:
        page = service.http.get(link, headers=headers).json()
        found += page["items"]
        link = page["next"]
    return found


def test_acts_are_told_with_who_and_on_which_request(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        search_id = service.submit()
        play(service, search_id)
        named = {"X-Request-ID": "mine-1"}
        assert service.http.delete(f"/searches/{search_id}", headers=named).status_code == 204
        assert service.http.delete(f"/searches/{search_id}", headers=named).status_code == 404
        hook = service.http.post("/webhooks", json={"url": "https://example.org"}).json()
        here = f"/webhooks/{hook['id']}"
        service.http.patch(here, json={"enabled": False})
        renewed = service.http.post(f"{here}/secret").json()["secret"]
        service.http.delete(here)
        made, text = administration.create_key(
            service.settings.database, name="operator", scopes=["admin"], expires_at=None
        )
        own = {"Authorization": f"Bearer {text}"}
        other = service.http.post("/keys", json={"name": "x", "scopes": ["read"]}, headers=own)
        told = acts(service, **own)
    assert [act["action"] for act in reversed(told)] == [
        "search.deleted",
        "webhook.created",
        "webhook.changed",
        "webhook.secret_renewed",
        "webhook.removed",
        "key.created",
        "key.created",
    ]
    deleted, by_operator, by_key = told[-1], told[1], told[0]
    assert (deleted["subject"], deleted["actor"]) == (search_id, "client")
    assert deleted["request_id"] == "mine-1"
    assert (by_operator["subject"], by_operator["actor"]) == (made.id, "command line")
    assert (by_key["subject"], by_key["actor"]) == (other.json()["id"], f"key {made.id}")
    for secret in (hook["secret"], renewed, text, other.json()["key"]):
        assert secret not in str(told)
