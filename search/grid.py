"""The points of a space: its grid, in a fixed order, and whether a point lies inside."""

import itertools
import math
import random
from functools import lru_cache

from search.spec import LearnerSettings, Range, SearchSpec


@lru_cache(maxsize=8)
def grid_settings(spec: SearchSpec) -> tuple[LearnerSettings, ...]:
    """List the space's own settings, then every other point of the grid, shuffled by the seed.

    Shuffled, for neighbours in a product are alike, and a search seldom pays for all of them.
    """
    choices, kept = _choices(spec), spec.space.learner.model_dump()
    points = [
        LearnerSettings.model_validate(kept | dict(zip(choices, point, strict=True)))
        for point in itertools.product(*choices.values())
    ]
    random.Random(spec.seed).shuffle(points)  # noqa: S311  (an order, not a secret)
    return tuple(dict.fromkeys((spec.space.learner, *points)))


def grid_size(spec: SearchSpec) -> int:
    """Count what `grid_settings` lists, without listing it."""
    choices, kept = _choices(spec), spec.space.learner.model_dump()
    on_grid = all(kept[name] in values for name, values in choices.items())
    return math.prod(map(len, choices.values())) + (not on_grid)


def _choices(spec: SearchSpec) -> dict[str, tuple[object, ...]]:
    space, values = spec.space, spec.sampler.grid_values
    choices: dict[str, tuple[object, ...]] = {
        "start": tuple(dict.fromkeys(space.starts)),
        "group": tuple(dict.fromkeys(space.groups)),
    }
    return choices | {n: grid_values(interval, values) for n, interval in spec.drawn.items()}


def grid_values(interval: Range, values: int) -> tuple[float, ...]:
    """Spread the values evenly from end to end, as they are drawn: by ratio, where none is zero."""
    low, high = interval.low, interval.high
    if low == high:
        return (low,)
    if values == 1:
        return (math.sqrt(low * high) if low > 0 else (low + high) / 2,)
    inner = [step / (values - 1) for step in range(1, values - 1)]
    if low > 0:
        between = [low * (high / low) ** share for share in inner]
    else:
        between = [low + (high - low) * share for share in inner]
    return (low, *between, high)


def is_drawable(settings: LearnerSettings, spec: SearchSpec) -> bool:
    """Whether the sampler could have proposed these settings: the given ones may lie outside."""
    space, values = spec.space, settings.model_dump()
    ranges = spec.drawn | ({"share": spec.shares} if spec.draws_budget else {})
    inside = (
        values[name] is not None and interval.low <= values[name] <= interval.high
        for name, interval in ranges.items()
    )
    return settings.start in space.starts and settings.group in space.groups and all(inside)


def first_settings(spec: SearchSpec) -> LearnerSettings:
    """Return what the first candidate is made with: the space's own settings."""
    learner = spec.space.learner
    if not spec.draws_budget or learner.share is not None:
        return learner
    middle = math.sqrt(spec.shares.low * spec.shares.high)
    return learner.model_copy(update={"share": middle})
