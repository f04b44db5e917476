"""Whether a network keeps to what the search allows it: by how much it exceeds each ceiling."""

from collections.abc import Mapping

from search.sampler import Limits


def excesses(limits: Limits, metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return metric over ceiling, less one, for every ceiling: above zero is too much.

    The budget is the ceiling of the cost. What was not measured is not held against a network.
    """
    ceilings = {"cost": metrics.get("budget")} | dict(limits)
    return {
        name: 0.0 if (value := metrics.get(name)) is None else value / ceiling - 1
        for name, ceiling in ceilings.items()
        if ceiling is not None
    }


def exceeded(limits: Limits, metrics: Mapping[str, float | None]) -> tuple[str, ...]:
    """Name the ceilings that a network exceeds; one that exceeds any never wins."""
    return tuple(name for name, excess in excesses(limits, metrics).items() if excess > 0)
