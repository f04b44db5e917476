"""Traces: sent by OTLP where the standard OTEL_* variables say so, and carried from row to process.

Without those variables, or without the extra `otel`, every span here is one that does nothing.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import Engine

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
FLUSH_MILLISECONDS = 3000

log = logging.getLogger(__name__)
_w3c = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("matnas", version("matnas"))
# What the exporting half of this process is, once it has been set up.
_providers: "list[TracerProvider]" = []


def configure(name: str) -> None:
    """Send this process's spans as the process `name`, if the environment says where to."""
    if _providers or not wanted(os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased  # noqa: PLC0415
    except ImportError:
        log.warning("OTEL_* asks for traces, which need: pip install 'matnas[otel]'")
        return
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: name}
    resource = Resource.create({**named, "service.version": version("matnas")})
    sending = BatchSpanProcessor(OTLPSpanExporter())
    spans = TracerProvider(resource=resource)
    # The polls of the workers' threads are no traces of their own: SQL is told within others only.
    within = ParentBased(ALWAYS_OFF)
    statements = TracerProvider(resource=resource, sampler=within, shutdown_on_exit=False)
    for provider in (spans, statements):
        provider.add_span_processor(sending)
    trace.set_tracer_provider(spans)
    _providers.extend((spans, statements))


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether OTEL_* names somewhere to send traces to, in the one protocol that is spoken."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return False
    if not any(environment.get(name) for name in ENDPOINTS):
        return False
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "")
    if protocol not in {"", "http/protobuf"}:
        log.warning("traces are sent by http/protobuf only, not by %s: there are none", protocol)
        return False
    return True


def watch(engine: Engine) -> None:
    """Make a span of every statement that is part of a trace."""
    if not _providers:
        return
    from opentelemetry.instrumentation.sqlalchemy import (  # noqa: PLC0415  (of the extra)
        SQLAlchemyInstrumentor,
    )

    watcher = SQLAlchemyInstrumentor()
    if not watcher.is_instrumented_by_opentelemetry:  # a process has one engine
        # It has not been released for SQLAlchemy 2.1, whose events are those of 2.0: a test looks.
        watcher.instrument(engine=engine, tracer_provider=_providers[1], skip_dep_check=True)


def flush() -> None:
    """Send what is still here: a process that ends at once takes its spans along."""
    for provider in _providers[:1]:
        provider.force_flush(FLUSH_MILLISECONDS)


def here() -> str | None:
    """The current span, as others name it in `traceparent`; None outside of any."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    facts: Mapping[str, str | int | None] = MappingProxyType({}),
) -> Iterator[Span]:
    """Do something within a span: of the trace that `parent` names, linked to where it is done."""
    links = [Link(trace.get_current_span().get_span_context())] if parent else []
    context: Context | None = _w3c.extract({"traceparent": parent}) if parent else None
    attributes = {f"matnas.{name}": fact for name, fact in facts.items() if fact is not None}
    with _tracer.start_as_current_span(
        name,
        context=context,
        kind=kind,
        attributes=attributes,
        links=[link for link in links if link.context.is_valid],
    ) as opened:
        yield opened
