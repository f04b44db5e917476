"""How often a key may ask: counted in Redis where that is the broker, else in this process."""

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar, final

from limits import parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter as Limiter

from service.errors import RateLimited
from service.settings import Settings

# A broker that does not answer is left alone for a while: counting must not hold up what it counts.
PAUSE_SECONDS = 30.0
TIMEOUT_SECONDS = 0.5
SHARED = ("redis://", "rediss://")

Found = TypeVar("Found")
log = logging.getLogger(__name__)


@final
class RateLimit:
    """The limit that holds for each key by itself."""

    def __init__(self, settings: Settings) -> None:
        self.words = settings.rate_limit
        self._item = parse(self.words) if self.words else None
        self._here = Limiter(MemoryStorage())
        self._shared: Limiter | None = None
        if settings.broker_url.startswith(SHARED):
            storage = RedisStorage(
                settings.broker_url,
                key_prefix="matnas",
                wrap_exceptions=True,
                socket_connect_timeout=TIMEOUT_SECONDS,
                socket_timeout=TIMEOUT_SECONDS,
            )
            self._shared = Limiter(storage)
        self._away_until = 0.0

    @property
    def asks_redis(self) -> bool:
        """Whether to count is to wait."""
        return self._shared is not None and self._item is not None

    def take(self, key_id: str) -> None:
        """Count a request, or raise RateLimited where there have been too many."""
        item = self._item
        if item is None or self._count(lambda limiter: limiter.hit(item, key_id)):
            return
        reset = self._count(lambda limiter: limiter.get_window_stats(item, key_id).reset_time)
        seconds = max(1, math.ceil(reset - time.time()))
        sentence = f"the key {key_id} may ask {self.words.replace('/', ' times a ')}: ask again in"
        raise RateLimited(f"{sentence} {seconds} s", retry_after=seconds)

    def remaining(self, key_id: str) -> int | None:
        """How many more requests would be answered now; None without a limit."""
        item = self._item
        if item is None:
            return None
        return self._count(lambda limiter: limiter.get_window_stats(item, key_id).remaining)

    def _count(self, ask: Callable[[Limiter], Found]) -> Found:
        if self._shared is not None and time.monotonic() >= self._away_until:
            try:
                return ask(self._shared)
            except StorageError as error:
                # Each process counts by itself meanwhile: better too wide a limit than no answer.
                self._away_until = time.monotonic() + PAUSE_SECONDS
                log.warning("requests cannot be counted in Redis: %s", error.storage_error)
        return ask(self._here)
