"""The tables: a row is the job, and everything that is promised about a job is a column here."""

from datetime import UTC, datetime
from typing import Any, ClassVar, final

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


@final
class Moment(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets time zones, so it is given and asked for plain UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a moment without a zone, rather than guess one."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The metadata that the migrations must lead to."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        datetime: Moment(),
        Json: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        list[Json]: JSON(none_as_null=True),
        list[Json | None]: JSON(none_as_null=True),
        str: Text(),
        # SQLite counts up only what is called INTEGER.
        int: BigInteger().with_variant(Integer(), "sqlite"),
    }


@final
class SearchRow(Base):
    """A search: what was asked, what arithmetic knew about it, where it stands."""

    __tablename__ = "searches"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "state"),
        Index(None, "key_id", "state"),
        Index(None, "best_loss", "id"),
        Index(None, "name", "id"),
        Index(None, "priority", "id"),
        Index(None, "model"),
        Index(None, "dataset"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    # Whose quota it counts against; of nobody in particular where there are no keys.
    key_id: Mapped[str | None] = mapped_column(String(40))
    name: Mapped[str | None]
    model: Mapped[str]
    dataset: Mapped[str | None]
    spec: Mapped[Json]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    sentence: Mapped[str]
    version: Mapped[int] = mapped_column()
    quantity: Mapped[str]
    budget: Mapped[int]
    dense_cost: Mapped[int]
    smallest_cost: Mapped[int]
    eligible: Mapped[list[str]]
    network: Mapped[Json] = mapped_column(deferred=True)
    report: Mapped[Json | None] = mapped_column(deferred=True)
    profile: Mapped[Json | None] = mapped_column(deferred=True)
    warm_start: Mapped[Json | None]
    earlier: Mapped[list[Json] | None] = mapped_column(deferred=True)
    # The request that last decided on the search, and the trace that its work belongs to.
    request_id: Mapped[str | None] = mapped_column(String(64))
    trace: Mapped[str | None] = mapped_column(String(60))
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    # Searches with more of it go first.
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    # Of the best so far that keeps to its budget, for lists to be filtered and sorted by.
    best_loss: Mapped[float | None]
    # The best so far under each budget; nothing where no trial has ended since the column came.
    bests: Mapped[list[Json | None] | None]

    # Every change of a search is an UPDATE ... WHERE version = the one that was read.
    __mapper_args__ = {"version_id_col": version}


@final
class TagRow(Base):
    """One tag of one search."""

    __tablename__ = "search_tags"

    search_id: Mapped[str] = mapped_column(
        ForeignKey("searches.id", ondelete="CASCADE"), primary_key=True
    )
    tag: Mapped[str] = mapped_column(primary_key=True, index=True)


@final
class TrialRow(Base):
    """A trial: `attempt` is the fencing number, `losses` counts the attempts whose worker died."""

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("search_id", "number"),
        Index(None, "state", "lease_until"),
        Index(None, "state", "ready_at"),
        # How far a search has come is counted from this alone.
        Index(None, "search_id", "state", "ran_seconds", "kind"),
        Index(None, "search_id", "loss", "number"),
        Index(None, "search_id", "cost", "number"),
        Index(None, "search_id", "latency_ratio", "number"),
        Index(None, "search_id", "started_at", "number"),
    )

    id: Mapped[str] = mapped_column(String(60), primary_key=True)
    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id", ondelete="CASCADE"))
    number: Mapped[int]
    kind: Mapped[str]
    family: Mapped[str | None]
    repeat: Mapped[int]
    budget_index: Mapped[int] = mapped_column(server_default=text("0"))
    name: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    sentence: Mapped[str]
    attempt: Mapped[int]
    losses: Mapped[int]
    owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    hinted_at: Mapped[datetime | None]
    ready_at: Mapped[datetime | None]  # since when it waits for nothing but a worker
    settings: Mapped[Json | None]
    network: Mapped[Json | None] = mapped_column(deferred=True)
    metrics: Mapped[Json | None]
    cost: Mapped[int | None]
    # Of the metrics, or the newest value, and of the report: lists are filtered and sorted by them.
    loss: Mapped[float | None]
    latency_ratio: Mapped[float | None]
    times: Mapped[Json | None] = mapped_column(deferred=True)
    phase: Mapped[str | None]
    done: Mapped[int | None]
    total: Mapped[int | None]
    unit: Mapped[str | None]
    # This attempt's beginning, and how long those before it ran.
    begun_at: Mapped[datetime | None]
    ran_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


@final
class PointRow(Base):
    """One value of one curve; a resumed attempt rewrites the steps that it repeats."""

    __tablename__ = "metric_points"

    trial_id: Mapped[str] = mapped_column(
        ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float | None]


@final
class LatestRow(Base):
    """The newest value of one curve, so that a table of trials never reads the curves."""

    __tablename__ = "metric_latest"

    trial_id: Mapped[str] = mapped_column(
        ForeignKey("trials.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int]
    value: Mapped[float | None]


@final
class EventRow(Base):
    """One transition: what became of whom, why, by whom, on which request."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "search_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id", ondelete="CASCADE"))
    trial_number: Mapped[int | None]
    attempt: Mapped[int | None]
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    sentence: Mapped[str]
    actor: Mapped[str]
    request_id: Mapped[str | None]
    at: Mapped[datetime]


@final
class ArtifactRow(Base):
    """One upload, whose bytes are a file."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    key_id: Mapped[str | None] = mapped_column(String(40), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int]
    tensor: Mapped[str]
    dtype: Mapped[str]
    rows: Mapped[int]
    columns: Mapped[int]
    created_at: Mapped[datetime]


@final
class WorkerRow(Base):
    """A worker process, and when it last said that it lives."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    seen_at: Mapped[datetime]


@final
class WebhookRow(Base):
    """An address that is told of events; whoever holds it (until `free_at`) has a `fence`."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    url: Mapped[str]
    kinds: Mapped[list[str]]
    search_id: Mapped[str | None] = mapped_column(
        ForeignKey("searches.id", ondelete="CASCADE"), index=True
    )
    enabled: Mapped[bool]
    sentence: Mapped[str]
    failures: Mapped[int]  # since the last success
    secret: Mapped[str] = mapped_column(deferred=True)
    former_secret: Mapped[str | None] = mapped_column(deferred=True)
    former_until: Mapped[datetime | None]
    fence: Mapped[int]
    free_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


@final
class DeliveryRow(Base):
    """One event for one address, inserted in the transaction of the event: the outbox.

    No foreign key to the webhook: its deletion must never refuse a transition that is being made.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index(None, "webhook_id", "event_id"), Index(None, "state", "due_at"))

    event_id: Mapped[int] = mapped_column(
        ForeignKey("events.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    webhook_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    due_at: Mapped[datetime | None]
    status: Mapped[int | None]
    sentence: Mapped[str]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


@final
class AuditRow(Base):
    """One act that no event tells of: it stays when what it was done to is gone."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    action: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str]
    sentence: Mapped[str]
    actor: Mapped[str]
    request_id: Mapped[str | None]
    at: Mapped[datetime]


@final
class CounterRow(Base):
    """How often something has happened, over all processes and restarts."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    value: Mapped[int]


@final
class AnswerRow(Base):
    """The answer that was given to a request with an Idempotency-Key."""

    __tablename__ = "idempotency"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    answer: Mapped[Json | None]
    created_at: Mapped[datetime]


@final
class KeyRow(Base):
    """An API key: `id` is its public part, and of the whole only the SHA-256 is here."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str]
    scopes: Mapped[list[str]]
    sha256: Mapped[str] = mapped_column(String(64))
    quota: Mapped[Json | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


@final
class SessionRow(Base):
    """Somebody who has shown a key to the pages: the SHA-256 of the cookie, and until when."""

    __tablename__ = "sessions"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


@final
class ComputeRow(Base):
    """What searches that have been deleted had cost a key on a day (UTC)."""

    __tablename__ = "deleted_compute"

    key_id: Mapped[str] = mapped_column(
        ForeignKey("api_keys.id", ondelete="CASCADE"), primary_key=True
    )
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    seconds: Mapped[float]
