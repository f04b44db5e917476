"""Questions that are asked at the same time are answered in one transaction."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from service.api.together import Together
from service.db.session import Database

ABOUT = ContextVar("about", default="nobody")


class Reader:
    """Answers with the double, and lets the first round wait."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.about: list[str] = []
        self.go_on = threading.Event()

    def __call__(self, session: Session, questions: Sequence[int]) -> Mapping[int, int]:
        self.rounds.append(sorted(questions))
        self.about.append(ABOUT.get())
        assert self.go_on.wait(10)
        if 13 in questions:
            raise ValueError("thirteen")
        return {question: 2 * question for question in questions if question >= 0}


@pytest.fixture
def together(tmp_path: Path) -> tuple[Together[int, int], Reader]:
    reader = Reader()
    return Together(Database(f"sqlite:///{tmp_path / 'rows.db'}"), reader), reader


def test_who_asks_during_a_round_is_answered_in_the_next(
    together: tuple[Together[int, int], Reader],
) -> None:
    asking, reader = together

    async def ask() -> list[int | None]:
        first = asyncio.create_task(asking.ask(1))
        while not reader.rounds:
            await asyncio.sleep(0)
        # The one that is being read began before this was asked: it may be out of date.
        others = [asyncio.create_task(asking.ask(number)) for number in (1, 2, 2, -1)]
        await asyncio.sleep(0)
        reader.go_on.set()
        return [await task for task in (first, *others)]

    assert asyncio.run(ask()) == [2, 2, 4, 4, None]
    assert reader.rounds == [[1], [-1, 1, 2]]


def test_who_goes_away_takes_nothing_from_others(
    together: tuple[Together[int, int], Reader],
) -> None:
    asking, reader = together

    async def ask() -> int | None:
        gone, stays = (asyncio.create_task(asking.ask(3)) for _ in range(2))
        while not reader.rounds:
            await asyncio.sleep(0)
        gone.cancel()
        reader.go_on.set()
        return await stays

    assert asyncio.run(ask()) == 6


def test_an_error_is_whose_question_it_was_and_the_next_round_goes_on(
    together: tuple[Together[int, int], Reader],
) -> None:
    asking, reader = together
    reader.go_on.set()

    async def ask() -> list[int | BaseException | None]:
        first, second = await asyncio.gather(asking.ask(13), asking.ask(4), return_exceptions=True)
        return [first, second, await asking.ask(5)]

    wrong, beside_it, right = asyncio.run(ask())
    assert isinstance(wrong, ValueError)
    assert (beside_it, right) == (8, 10)


def test_a_round_is_nobodys_request(together: tuple[Together[int, int], Reader]) -> None:
    asking, reader = together
    reader.go_on.set()

    async def ask() -> int | None:
        ABOUT.set("the first")
        return await asking.ask(1)

    assert asyncio.run(ask()) == 2
    assert reader.about == ["nobody"]
