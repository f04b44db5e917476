"""How much a key may have in use: of the whole installation, or of one key."""

from typing import final

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt


@final
class Quota(BaseModel):
    """How much may be in use at once or in a day; None is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    live_searches: NonNegativeInt | None = None
    compute_seconds_a_day: NonNegativeFloat | None = None
    artifact_bytes: NonNegativeInt | None = None
