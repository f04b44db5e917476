"""Times of several products in pairs: every round calls each in turn, and ratios are per round."""

import time
from collections.abc import Callable, Mapping

from models.deployment import timing

Call = Callable[[], object]

SHORTEST = 5e-4  # seconds that one timing should take: shorter calls are repeated within it
FEWEST, MOST = 7, 60  # rounds


def rounds_of(calls: Mapping[str, Call], *, seconds: float) -> dict[str, list[float]]:
    """Seconds for each call in each of as many rounds as fit the time; 7 to 60."""
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        call()
        call()
        once = _timed(call, 1)
        repeats[name] = max(1, round(SHORTEST / once))
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() - started > seconds:
            break
        # Nobody always follows the same neighbour, whose leavings lie in the cache.
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            times[name].append(_timed(calls[name], repeats[name]))
    return times


def ratio(times: Mapping[str, list[float]], name: str, to: str) -> list[float]:
    """Median, lower and upper quartile of one call's times over another's, for JSON."""
    found = timing([one / other for one, other in zip(times[name], times[to], strict=True)])
    return [round(value, 3) for value in (found.ratio, *found.quartiles)]


def _timed(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
