"""How a running trial speaks with whoever runs it: it reports, and asks whether to stop."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, final

Item = TypeVar("Item")


class StoppedError(Exception):
    """Asked to stop; the newest checkpoint is kept."""


@dataclass(frozen=True, slots=True)
class Update:
    """Where a trial stands: `done` of `total` steps of `phase`, with the newest metric values."""

    phase: str
    done: int
    total: int
    unit: str = "step"
    metrics: Mapping[str, float] = field(default_factory=dict)


class Progress(Protocol):
    """Owned by `search`, implemented by whoever runs it."""

    def report(self, update: Update) -> None:
        """Take note; called often, so it must be cheap, and may be dropped if it has no metrics."""

    def should_stop(self) -> bool:
        """Whether to stop after this training step; called once a step, so it must be cheap."""


class Silent:
    """Progress for nobody: nothing is said, and nothing stops it."""

    def report(self, update: Update) -> None:
        """Say nothing."""

    def should_stop(self) -> bool:
        """Never."""
        return False


@final
class Recorder:
    """Keeps the validation curve that later trials are pruned against."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self.curve: list[tuple[int, float]] = []

    def report(self, update: Update) -> None:
        """Keep its validation loss, and pass it on."""
        if "validation_loss" in update.metrics:
            self.curve.append((update.done, update.metrics["validation_loss"]))
        self.inner.report(update)

    def should_stop(self) -> bool:
        """Whether the one within is told to."""
        return self.inner.should_stop()


def stop_if_asked(progress: Progress) -> None:
    """Raise StoppedError where whoever runs the trial wants it to end."""
    if progress.should_stop():
        raise StoppedError


def followed(items: Sequence[Item], progress: Progress, phase: str, *, unit: str) -> Iterator[Item]:
    """Yield the items, each after its number was reported. Raises StoppedError between two."""
    for index, item in enumerate(items):
        stop_if_asked(progress)
        progress.report(Update(phase, index, len(items), unit=unit))
        yield item
