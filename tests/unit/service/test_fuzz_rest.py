"""Whatever the OpenAPI document admits, and much that it does not, gets a documented answer."""

import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service import jobs
from service.credentials import SCOPES
from tests.serving import SPEC, Service, play, serving

FULL = bool(os.environ.get("FULL_PROOF"))
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
choices = settings(
    max_examples=100 if FULL else 3,
    stateful_step_count=30 if FULL else 12,
    deadline=None,
    database=None,
    derandomize=not FULL,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(
        tmp_path_factory.mktemp("home"), log_level="ERROR", reap_seconds=10_000
    ) as running:
        yield running


@pytest.fixture(scope="module")
def document(service: Service) -> Any:
    with service.database.write() as session:
        jobs.note_worker(session, "hand", now=datetime.now(UTC))
    played, live = service.submit(), service.submit()
    play(service, played)
    known: dict[str, list[object]] = {"search_id": [played, live], "number": [0, 1, 3]}
    known["artifact_id"] = [f"{played}-0-network.json"]
    found = schemathesis.openapi.from_dict(without_tuples(service.http.get("/openapi.json").json()))
    found.config.update(base_url=service.url)

    def map_path_parameters(context: Any, path_parameters: Any) -> Any:
        """Ask after what there is, more often than not."""
        for name, value in (path_parameters or {}).items():
            there = known.get(name, [])
            choice = sum(str(value).encode(errors="replace")) % (2 + len(there))
            path_parameters[name] = there[choice] if choice < len(there) else value
        return path_parameters

    def map_query(context: Any, query: Any) -> Any:
        """Ask for events as a list: a stream has no end while its search lives."""
        return {"after": 0} | (query or {}) if _are_events(context.operation) else query

    def map_body(context: Any, body: Any) -> Any:
        """Ask for a search that can be, now and then: few are that are drawn."""
        if (context.operation.method, context.operation.path) != ("post", "/v1/searches"):
            return body
        return SPEC if len(str(body)) % 3 else body

    for hook in (map_path_parameters, map_query, map_body):
        found.hook(hook)
    return found


def without_tuples(part: Any) -> Any:
    """The same with any order in tuples.

    Schemathesis 4.32 writes `prefixItems` in the older dialect, and then refuses it by the newer.
    """
    if isinstance(part, list):
        return [without_tuples(one) for one in part]
    if not isinstance(part, dict):
        return part
    changed = {name: without_tuples(one) for name, one in part.items() if name != "prefixItems"}
    if isinstance(kinds := part.get("prefixItems"), list):
        changed["items"] = {"anyOf": without_tuples(kinds)}
    return changed


def _are_events(operation: Any) -> bool:
    return bool(operation.path.endswith("/events"))


def admission(service: Service) -> dict[str, str]:
    """A key of its own: what is drawn makes keys, which shut the door, and revokes them."""
    with service.database.write() as session:
        _, text = jobs.create_key(
            session, name="fuzz", scopes=SCOPES, expires_at=None, now=datetime.now(UTC)
        )
    return {"Authorization": f"Bearer {text}"}


def test_every_operation_answers_as_it_is_documented(
    service: Service, document: Any, subtests: pytest.Subtests
) -> None:
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 30
    for operation in operations:
        with subtests.test(operation.label):
            ask(operation, admission(service))


def ask(operation: Any, headers: dict[str, str]) -> None:
    """Send what an operation admits, and what it does not."""
    drawn = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @choices
    @given(case=st.one_of(drawn))
    def answers(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, headers=headers, timeout=60)

    answers()


def test_what_one_answer_gives_leads_on_to_the_next(service: Service, document: Any) -> None:
    succeeded = Counter[str]()

    class Machine(document.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            self.headers = admission(service)

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": self.headers, "timeout": 60}

        def validate_response(self, response: Any, case: Any, **more: Any) -> None:
            case.validate_response(response, checks=CHECKS)
            succeeded[case.operation.label] += response.status_code < 300

    Machine.run(settings=choices)
    assert succeeded["POST /v1/searches"]
    assert succeeded["GET /v1/searches/{search_id}/trials/{number}"]
