"""How every process writes its log: as text or JSON, with what it is about, without secrets."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import final
from urllib.parse import unquote, urlsplit

from opentelemetry import trace
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from service.credentials import redacted
from service.settings import Settings

FACTS = ("request_id", "search_id", "trial", "attempt", "trace_id")
# What is shorter is a word that may stand anywhere; as part of a URL it is hidden all the same.
SHORTEST_SECRET = 6
HIDDEN = "***"

_about: ContextVar[Mapping[str, object]] = ContextVar("about", default=MappingProxyType({}))


def note(**facts: object) -> None:
    """Say what all that this request or thread logs from here on is about."""
    _about.set({**_about.get(), **facts})


@contextmanager
def about(**facts: object) -> Iterator[None]:
    """Say what is logged within is about."""
    token = _about.set({**_about.get(), **facts})
    try:
        yield
    finally:
        _about.reset(token)


def configure(settings: Settings, *names: str) -> None:
    """Write the named loggers, or without a name all of the process, to standard error."""
    shown = logging.StreamHandler()
    shown.addFilter(Facts())
    shown.setFormatter(formatter(settings))
    if not names:
        logging.basicConfig(level=logging.WARNING, handlers=[shown], force=True)
        for name in ("service", "worker", "search", "__main__"):
            logging.getLogger(name).setLevel(settings.log_level)
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [shown], False
        logger.setLevel(settings.log_level)


def formatter(settings: Settings) -> logging.Formatter:
    """What the installation reads: text, unless MATNAS_LOG_FORMAT=json."""
    inner: logging.Formatter = InWords("%(asctime)s %(levelname)s %(name)s%(facts)s %(message)s")
    if settings.log_format == "json":
        inner = JsonFormatter(
            ["levelname", "name", "process", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message", "taskName"],  # uvicorn's, asyncio's
            timestamp="time",
        )
    return Discreet(inner, passwords(settings))


def passwords(settings: Settings) -> tuple[str, ...]:
    """The passwords in the installation's URLs, as they stand there and as they are meant."""
    found = [urlsplit(url).password for url in (settings.database, settings.broker_url)]
    return tuple(form for one in found if one is not None for form in (one, unquote(one)))


@final
class Facts(logging.Filter):
    """Puts on every record what it is about, so that a format may show it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything pass, with its facts."""
        facts = dict(_about.get())
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            facts["trace_id"] = trace.format_trace_id(span.trace_id)
        for name, value in facts.items():
            if value is not None and not hasattr(record, name):
                setattr(record, name, value)
        return True


@final
class InWords(logging.Formatter):
    """A line for people: what it is about stands in brackets."""

    def format(self, record: logging.LogRecord) -> str:
        """Show the facts that there are."""
        known = vars(record)
        facts = " ".join(f"{name}={known[name]}" for name in FACTS if name in known)
        record.facts = f" [{facts}]" if facts else ""
        return super().format(record)


@final
class Discreet(logging.Formatter):
    """Another format, with every secret that could be in it hidden."""

    def __init__(self, inner: logging.Formatter, known: Iterable[str] = ()) -> None:
        super().__init__()
        self._inner = inner
        # By itself, a long password is hidden too: drivers repeat what they were given.
        self._known = [one for one in known if len(one) >= SHORTEST_SECRET]

    def format(self, record: logging.LogRecord) -> str:
        """Hide in the whole text, stack traces included."""
        text = redacted(self._inner.format(record))
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        return text
