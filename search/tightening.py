"""The most that may be asked for so that what comes of it, once measured, is within a budget."""

from collections.abc import Callable
from typing import TypeVar

TRIES = 16
CLOSE = 0.01  # of the budget: nearer than this is not looked for

Result = TypeVar("Result")


def tightest(budget: int, attempt: Callable[[int], tuple[Result, int]]) -> Result | None:
    """Return what is within the budget and about the dearest of that; None if nothing is found.

    `attempt` makes something for a target and says by how much that exceeds the budget. Targets
    fall until one fits, and then halve the gap to the last that did not.
    """
    best: Result | None = None
    low, high, target = 0, 0, budget
    for _ in range(TRIES):
        result, excess = attempt(target)
        if excess <= 0:
            best, low = result, target
        else:
            high = target
        if best is None:
            in_proportion = target * budget // (budget + excess)
            target = min(in_proportion, target - round(CLOSE * budget))
        elif high - low > CLOSE * budget:
            target = (low + high) // 2
        else:
            break
        if target <= 0:
            break
    return best
