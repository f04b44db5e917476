"""Traces: only where OTEL_* says so, and one from a request to the trial that it asked for."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service import tracing
from service.supervisor import READY
from tests.serving import SPEC

Spans = dict[str, Any]


@contextmanager
def collecting() -> Iterator[tuple[str, Spans]]:
    """A collector that keeps the first span of each name, with the process that it is of."""
    found: Spans = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent = ExportTraceServiceRequest.FromString(body)
            for of_process in sent.resource_spans:
                named = {one.key: one.value.string_value for one in of_process.resource.attributes}
                for scope in of_process.scope_spans:
                    for span in scope.spans:
                        found.setdefault(f"{named['service.name']} {span.name}", span)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
    ],
)
def test_the_standard_variables_decide(environment: Mapping[str, str], *, wanted: bool) -> None:
    assert tracing.wanted(environment) == wanted


def test_without_them_a_span_is_nothing_and_names_no_trace() -> None:
    with tracing.span("nothing", facts={"trial": 1}):
        assert tracing.here() is None


def test_one_trace_leads_from_the_request_to_the_trial(tmp_path: Path) -> None:
    with collecting() as (endpoint, spans):
        environment = os.environ | {
            "MATNAS_HOME": str(tmp_path),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--port", "0"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix(READY).strip()
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
                short = {"compute": {"trials": 1, "epochs": 1, "reference_epochs": 1}}
                search_id = http.post("/v1/searches", json=SPEC | short).json()["id"]
                wanted = (
                    "matnas-api POST /v1/searches",
                    "matnas-api matnas.run_trial send",
                    "matnas-worker matnas.run_trial",
                    "matnas-worker matnas.trial",
                    "matnas-trial matnas.attempt",
                )
                _until(lambda: set(wanted) <= spans.keys())
        finally:
            process.terminate()
            process.communicate(timeout=60)
        request, sent, taken, of_trial, attempt = (spans[name] for name in wanted)
        assert len({one.trace_id for one in (request, sent, taken, of_trial, attempt)}) == 1
        assert sent.parent_span_id == request.span_id
        assert taken.parent_span_id == sent.span_id
        assert of_trial.parent_span_id == request.span_id
        assert attempt.parent_span_id == of_trial.span_id
        assert [link.span_id for link in of_trial.links] == [taken.span_id]
        facts = {one.key: one.value for one in of_trial.attributes}
        assert facts["matnas.search_id"].string_value == search_id
        assert facts["matnas.trial"].int_value == 0
        assert any(name.startswith("matnas-api INSERT") for name in spans)


def _until(fact: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
