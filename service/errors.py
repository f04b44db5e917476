"""Every failure that a client can cause, with its status: the message is a sentence for it."""

from collections.abc import Mapping
from datetime import timedelta
from math import ceil
from typing import ClassVar, final


class ServiceError(Exception):
    """Something the client asked for cannot be; abstract, one final class states each fact."""

    status: ClassVar[int]
    code: ClassVar[str]
    # After how many seconds the same request may be answered.
    retry_after: ClassVar[int | None] = None

    def __init__(
        self,
        sentence: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.field = field
        self.headers = headers


@final
class SearchNotFound(ServiceError):
    """No search has this id."""

    status = 404
    code = "search_not_found"

    def __init__(self, search_id: str) -> None:
        super().__init__(f"there is no search {search_id!r}")


@final
class TrialNotFound(ServiceError):
    """The search has no trial of this number, or no trial has this id."""

    status = 404
    code = "trial_not_found"

    def __init__(self, trial: str) -> None:
        super().__init__(f"there is no trial {trial!r}")


@final
class ArtifactNotFound(ServiceError):
    """Nothing is stored under this id."""

    status = 404
    code = "artifact_not_found"

    def __init__(self, artifact_id: str) -> None:
        super().__init__(f"there is no artifact {artifact_id!r}")


@final
class ArtifactDamaged(ServiceError):
    """A file is not what was kept: its disk or its store has changed it."""

    status = 500
    code = "artifact_damaged"

    def __init__(self, name: str) -> None:
        super().__init__(f"the stored file {name!r} is not what was kept; restore it from a backup")


@final
class WebhookNotFound(ServiceError):
    """No webhook has this id."""

    status = 404
    code = "webhook_not_found"

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"there is no webhook {webhook_id!r}")


@final
class DeliveryNotFound(ServiceError):
    """The webhook was not told of this event."""

    status = 404
    code = "delivery_not_found"

    def __init__(self, event_id: int) -> None:
        super().__init__(f"event {event_id} is none of this webhook's deliveries")


@final
class WebhookRefused(ServiceError):
    """A webhook that could never be delivered to."""

    status = 422
    code = "webhook_refused"


@final
class NotYetThere(ServiceError):
    """What was asked for is made by a trial that has not made it."""

    status = 404
    code = "not_yet_there"


@final
class SpecRefused(ServiceError):
    """A search that is well formed but can never work."""

    status = 422
    code = "spec_refused"


@final
class QueryRefused(ServiceError):
    """A filter, a cursor or a list of ids that means nothing."""

    status = 422
    code = "query_refused"


@final
class ArtifactRefused(ServiceError):
    """An upload that no search could use."""

    status = 422
    code = "artifact_refused"


@final
class TooLarge(ServiceError):
    """More bytes than this installation takes."""

    status = 413
    code = "too_large"


@final
class WrongState(ServiceError):
    """The search is past the point where this could be done."""

    status = 409
    code = "wrong_state"


@final
class Changed(ServiceError):
    """What was to be changed is no longer what the client has seen."""

    status = 412
    code = "changed"


@final
class IdempotencyConflict(ServiceError):
    """The same Idempotency-Key came with another body."""

    status = 409
    code = "idempotency_conflict"


@final
class KeyRefused(ServiceError):
    """No key came, or one that opens nothing (any more)."""

    status = 401
    code = "key_refused"

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, headers={"WWW-Authenticate": "Bearer"})


@final
class ScopeMissing(ServiceError):
    """The key is good, but not for this."""

    status = 403
    code = "scope_missing"


@final
class OriginMissing(ServiceError):
    """A write by cookie that does not say from which page."""

    status = 403
    code = "origin_missing"


@final
class RateLimited(ServiceError):
    """The key has asked too often."""

    status = 429
    code = "rate_limited"

    def __init__(self, sentence: str, *, retry_after: int) -> None:
        super().__init__(sentence, headers={"Retry-After": str(retry_after)})


@final
class QuotaExceeded(ServiceError):
    """The key has all in use that it may; `retry_after` only where time alone heals it."""

    status = 429
    code = "quota_exceeded"

    def __init__(self, sentence: str, *, retry_after: timedelta | None = None) -> None:
        seconds = None if retry_after is None else max(1, ceil(retry_after.total_seconds()))
        super().__init__(
            sentence, headers=None if seconds is None else {"Retry-After": str(seconds)}
        )


@final
class KeyNotFound(ServiceError):
    """No key has this id."""

    status = 404
    code = "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no key {key_id!r}")


class IdempotencyInFlight(ServiceError):
    """The first request with this Idempotency-Key has not been answered yet."""

    status = 409
    code = "idempotency_in_flight"
    retry_after = 1


@final
class Unavailable(ServiceError):
    """What the service stands on is not there just now."""

    status = 503
    code = "unavailable"
    retry_after = 5
