"""What is asked at the same time is answered together: one transaction for all who wait.

While one round is being read, whoever asks waits for the next, so that rounds grow with the load
and nobody is told what was before they asked.
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar, final

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from service.db.session import Database

# More would keep those who come next waiting for too long.
LARGEST_ROUND = 50

Question = TypeVar("Question", bound=Hashable)
Reply = TypeVar("Reply")


@final
class Together(Generic[Question, Reply]):
    """Reads the replies to many questions at once; a question without one has None."""

    def __init__(
        self,
        rows: Database,
        read: Callable[[Session, Sequence[Question]], Mapping[Question, Reply]],
    ) -> None:
        self._rows = rows
        self._read = read
        self._waiting: dict[Question, asyncio.Future[Reply | None]] = {}
        self._round: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Reply | None:
        """Wait for the next round, and take what it has found."""
        future = self._waiting.get(question)
        if future is None:
            future = self._waiting[question] = asyncio.get_running_loop().create_future()
        if self._round is None:
            # Of nobody's request: its name in the log and its span would be those of the first.
            self._round = asyncio.create_task(self._rounds(), context=Context())
        # Who goes away takes nothing from the others.
        return await asyncio.shield(future)

    async def _rounds(self) -> None:
        try:
            while self._waiting:
                questions = list(self._waiting)[:LARGEST_ROUND]
                asked = {question: self._waiting.pop(question) for question in questions}
                await self._one_round(asked)
        finally:
            self._round = None

    async def _one_round(self, asked: Mapping[Question, asyncio.Future[Reply | None]]) -> None:
        try:
            found = await run_in_threadpool(self._look, list(asked))
        except (DBAPIError, PoolTimeout) as error:
            _fail(asked, error)
        except Exception as error:  # noqa: BLE001  (whose question it was raises it)
            if len(asked) == 1:
                _fail(asked, error)
            else:
                for question, future in asked.items():
                    await self._one_round({question: future})
        else:
            for question, future in asked.items():
                future.set_result(found.get(question))
        finally:
            for future in asked.values():
                future.cancel()  # only where this round was itself

    def _look(self, questions: Sequence[Question]) -> Mapping[Question, Reply]:
        with self._rows.read() as session:
            return self._read(session, questions)


def _fail(asked: Mapping[Any, asyncio.Future[Any]], error: Exception) -> None:
    for future in asked.values():
        future.set_exception(error)
        future.exception()  # for whoever has gone away meanwhile
