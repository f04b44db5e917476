"""The log: what a line is about stands in it, as text and as JSON, and no secret ever does."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from service import logs
from service.settings import Settings
from tests.serving import serving

LOGGER = logging.getLogger("service.logged")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path,
        database_url="postgresql://matnas:s3cr%3Ft-word@db/matnas",
        broker_url="redis://:pw@redis/0",
        log_format="json",
    )


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What goes to standard error, from loggers that are afterwards as before."""
    before = [(logging.getLogger(name), *_state(name)) for name in ("service", "uvicorn")]
    yield lambda: capsys.readouterr().err
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def _state(name: str) -> tuple[list[logging.Handler], bool, int]:
    logger = logging.getLogger(name)
    return logger.handlers, logger.propagate, logger.level


def _connect(url: str) -> None:
    raise RuntimeError(f"no way to {url}")


def lines(written: Callable[[], str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written().splitlines()]


def test_a_line_of_json_says_what_it_is_about(
    settings: Settings, written: Callable[[], str]
) -> None:
    logs.configure(settings, "service")
    with logs.about(request_id="r-1", search_id="srch_1", trial=3, attempt=2):
        LOGGER.info("%d of %d", 1, 2, extra={"milliseconds": 1.5})
    LOGGER.warning("alone")
    first, second = lines(written)
    assert {name: first[name] for name in ("level", "logger", "message", "milliseconds")} == {
        "level": "INFO",
        "logger": "service.logged",
        "message": "1 of 2",
        "milliseconds": 1.5,
    }
    assert [first[name] for name in ("request_id", "search_id", "trial", "attempt")] == [
        *("r-1", "srch_1"),
        *(3, 2),
    ]
    assert first["time"].endswith("+00:00")
    assert not {"request_id", "search_id", "trial", "attempt"} & second.keys()


def test_a_line_of_text_has_it_in_brackets(settings: Settings, written: Callable[[], str]) -> None:
    logs.configure(settings.model_copy(update={"log_format": "text"}), "service")
    with logs.about(request_id="r-1", trial=0, attempt=None):
        LOGGER.info("words")
    LOGGER.info("others")
    first, second = written().splitlines()
    assert first.endswith("INFO service.logged [request_id=r-1 trial=0] words")
    assert second.endswith("INFO service.logged others")


def test_what_one_thread_is_about_another_is_not(
    settings: Settings, written: Callable[[], str]
) -> None:
    logs.configure(settings, "service")
    with logs.about(trial=1):
        thread = threading.Thread(target=LOGGER.info, args=("elsewhere",))
        thread.start()
        thread.join()
        copy_context().run(LOGGER.info, "handed on")
    elsewhere, handed_on = lines(written)
    assert "trial" not in elsewhere
    assert handed_on["trial"] == 1


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_secrets_are_hidden_wherever_they_stand(
    settings: Settings, written: Callable[[], str], log_format: str
) -> None:
    logs.configure(settings.model_copy(update={"log_format": log_format}), "service")
    LOGGER.info("%s and %s", settings.database_url, settings.broker_url)
    LOGGER.info("it was said to be %s", "s3cr?t-word")
    LOGGER.info("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", extra={"header": "Bearer abc.def"})
    try:
        _connect("amqp://user:hunter22@host")
    except RuntimeError:
        LOGGER.exception("failed")
    text = written()
    for secret in ("s3cr", ":pw@", "MfKQ", "abc.def", "hunter22"):
        assert secret not in text
    assert "Traceback" in text
    assert "@db/matnas" in text


def test_a_request_is_logged_with_its_id_and_its_search(
    tmp_path: Path, written: Callable[[], str]
) -> None:
    with serving(tmp_path, log_format="json") as service:
        search_id = service.submit()
        service.http.post(f"/searches/{search_id}/cancel", headers={"X-Request-ID": "mine-7"})
    found = [line for line in lines(written) if line.get("request_id") == "mine-7"]
    found = [line for line in found if line["logger"].startswith("service.")]
    told = [line for line in found if line["logger"] == "service.jobs.transitions"]
    assert told[0]["message"].startswith("the search is STOPPING, by client: user_cancel, ")
    assert {line["search_id"] for line in found} == {search_id}
    (request,) = [line for line in found if "method" in line]
    assert (request["method"], request["status"]) == ("POST", 202)
    assert request["path"] == f"/searches/{search_id}/cancel"
