"""A slot that a trial frees in its thread is seen soon."""

import os
from collections.abc import Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous import Hub

from worker.attention import Attention


@pytest.fixture
def hub() -> Iterator[Any]:
    """A loop that waits for a broker which says nothing."""
    silent, end = os.pipe()
    hub: Any = Hub()  # type: ignore[no-untyped-call]
    hub.add_reader(silent, lambda: None)
    yield hub
    hub.close()
    os.close(end)


def seconds_of_turns(hub: Any, turns: int) -> float:
    loop, began = hub.create_loop(), monotonic()
    for _ in range(turns):
        next(loop)
    return monotonic() - began


def test_the_loop_turns_often_until_the_connection_ends(hub: Any) -> None:
    consumer = SimpleNamespace(hub=hub)
    step = Attention(consumer)
    step.start(consumer)
    assert seconds_of_turns(hub, 4) < 0.9
    step.stop(consumer)
    assert seconds_of_turns(hub, 3) > 1.5


def test_a_broker_without_a_loop_is_left_alone() -> None:
    consumer = SimpleNamespace(hub=None)
    step = Attention(consumer)
    step.start(consumer)
    step.stop(consumer)
