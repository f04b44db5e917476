"""Requests at moments that are fixed beforehand, so that a slow answer delays no later request."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, final

import aiohttp

TIMEOUT = aiohttp.ClientTimeout(total=60)


@final
@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and the statuses that it may be answered with."""

    method: str
    path: str
    statuses: tuple[int, ...] = (200,)
    body: object = None
    headers: tuple[tuple[str, str], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a request: seconds from the moment it was due to the last byte."""

    seconds: float
    body: bytes | None
    refused: str | None


async def at_rate(
    session: aiohttp.ClientSession, asks: Sequence[Ask], *, rate: float, draw: random.Random
) -> list[Answered]:
    """Send each request when it is due, at random moments that come to `rate` a second."""
    begin = time.perf_counter() + 0.1
    due, tasks = begin, []
    for ask in asks:
        due += draw.expovariate(rate)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(answered(session, ask, due=due)))
    return await asyncio.gather(*tasks)


async def in_turn(
    session: aiohttp.ClientSession,
    draw_ask: Callable[[], Ask],
    *,
    clients: int,
    seconds: float,
) -> tuple[list[Answered], float]:
    """So many clients, each of which asks again as soon as it has its answer; and for how long."""
    begin = time.perf_counter()
    found: list[Answered] = []

    async def ask_on() -> None:
        while (due := time.perf_counter()) < begin + seconds:
            found.append(await answered(session, draw_ask(), due=due))

    await asyncio.gather(*(ask_on() for _ in range(clients)))
    return found, time.perf_counter() - begin


async def beside(
    session: aiohttp.ClientSession,
    asks: Mapping[str, Callable[[], Ask]],
    *,
    clients: int,
    seconds: float,
) -> dict[str, Any]:
    """What so many clients get in turn: how many answers a second, and how late."""
    found = {}
    for name, draw_ask in asks.items():
        await answered(session, draw_ask(), due=time.perf_counter())  # what is read once is read
        answers, spent = await in_turn(session, draw_ask, clients=clients, seconds=seconds)
        found[name] = {"a_second": round(len(answers) / spent, 1)} | milliseconds(answers)
    return found


async def answered(session: aiohttp.ClientSession, ask: Ask, *, due: float) -> Answered:
    """Send one request, and wait for its answer."""
    try:
        async with session.request(
            ask.method, ask.path, json=ask.body, headers=dict(ask.headers)
        ) as response:
            body = await response.read()
        refused = None if response.status in ask.statuses else f"{response.status} for {ask.path}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return Answered(time.perf_counter() - due, None, f"{type(error).__name__} for {ask.path}")
    return Answered(time.perf_counter() - due, body, refused)


def milliseconds(answers: Sequence[Answered]) -> dict[str, float | int]:
    """How long answers took, by percentile; what was refused is counted, and as slow as it was."""
    taken = [1000 * one.seconds for one in answers]
    cuts = quantiles(taken, n=1000, method="inclusive")
    return {
        "requests": len(answers),
        "refused": sum(one.refused is not None for one in answers),
        "p50": round(cuts[499], 2),
        "p95": round(cuts[949], 2),
        "p99": round(cuts[989], 2),
        "most": round(max(taken), 2),
    }


def talking_to(url: str) -> aiohttp.ClientSession:
    """A client with as many connections as it takes."""
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(url, connector=connector, timeout=TIMEOUT)
