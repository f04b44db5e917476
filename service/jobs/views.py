"""What may be known of a search and its trials: frozen values, read from the rows once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from models.cost import Quantity
from models.spec import NetworkSpec
from search.plan import PlannedTrial, TrialKind, TrialState
from search.profile_report import ProfileReport
from search.report import Report
from search.spec import BaselineName, LearnerSettings, SearchSpec
from search.warm import EarlierCandidate
from service.lifecycle import Reason, SearchState


@dataclass(frozen=True, slots=True)
class ProgressView:
    """Where a search stands, in trials; `phase` says what the running ones do."""

    phase: str
    done: int
    total: int
    unit: str
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class BestView:
    """The trial with the least validation loss so far, of those that keep to the budget."""

    number: int
    name: str
    kind: TrialKind
    validation_loss: float
    cost: int
    budget: int


@dataclass(frozen=True, slots=True)
class WarmStartView:
    """What a search was told of an earlier one: so many candidates, and so many not."""

    search_id: str
    told: int
    outside: int
    sentence: str


@dataclass(frozen=True, slots=True)
class SearchView:
    """A search, without what is large: its networks and its report are asked for by themselves.

    With several budgets, `budget` is the largest, `best` the best of all, and `bests` has the best
    so far under each.
    """

    id: str
    name: str | None
    tags: tuple[str, ...]
    spec: SearchSpec
    state: SearchState
    reason: Reason
    sentence: str
    version: int
    priority: int
    quantity: Quantity
    budget: int
    budgets: tuple[int, ...]
    dense_cost: int
    smallest_cost: int | None
    eligible: tuple[str, ...]
    created_at: datetime
    started_at: datetime | None
    deadline_at: datetime | None
    ended_at: datetime | None
    progress: ProgressView
    best: BestView | None
    bests: tuple[BestView | None, ...]
    warm_start: WarmStartView | None

    @property
    def live(self) -> bool:
        """Whether anything can still happen to it."""
        return self.ended_at is None


@dataclass(frozen=True, slots=True)
class Pulse:
    """The last event of a search, and a mark that changes with its view, but for the estimate."""

    last_event: int
    mark: str


@dataclass(frozen=True, slots=True)
class SearchPage:
    """Searches; `cursor` asks for the next page, if there is one."""

    searches: tuple[SearchView, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """Which searches to list; what is None does not matter, and losses are of the best so far."""

    state: SearchState | None = None
    tag: str | None = None
    model: str | None = None
    dataset: str | None = None
    name: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    loss_from: float | None = None
    loss_to: float | None = None


@dataclass(frozen=True, slots=True)
class TrialPage:
    """Trials of one search; `cursor` asks for the next page, if there is one."""

    trials: tuple["TrialView", ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class TrialFilter:
    """Which trials to list; what is None does not matter."""

    state: TrialState | None = None
    kind: TrialKind | None = None
    worker: str | None = None
    loss_from: float | None = None
    loss_to: float | None = None
    cost_from: int | None = None
    cost_to: int | None = None


@dataclass(frozen=True, slots=True)
class TrialView:
    """A trial: `metrics` is what it ended with, `latest` the newest value of each curve."""

    id: str
    search_id: str
    number: int
    kind: TrialKind
    family: BaselineName | None
    repeat: int
    budget_index: int
    name: str
    state: TrialState
    reason: Reason
    sentence: str
    attempt: int
    losses: int
    owner: str | None
    settings: LearnerSettings | None
    metrics: Mapping[str, float | None]
    latest: Mapping[str, float | None]
    cost: int | None
    latency_ratio: float | None
    phase: str | None
    done: int | None
    total: int | None
    unit: str | None
    started_at: datetime | None
    ended_at: datetime | None
    seconds: float | None


Curve = tuple[tuple[int, float | None], ...]


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One network between cost and quality; `on_front` if no other is at least as good in all.

    What `exceeds` a ceiling of the search is on no front. `metric` is to be large: the
    validation accuracy, or minus the loss where there is none.
    """

    number: int
    name: str
    kind: TrialKind
    budget_index: int | None
    validation_loss: float
    metric: float
    cost: int
    latency_ratio: float | None
    exceeds: tuple[str, ...]
    on_front: bool


@dataclass(frozen=True, slots=True)
class Front:
    """Every network of a search between loss, cost and latency.

    Once they are measured, `hypervolume` is what the front covers of (validation loss, share of the
    dense cost, latency ratio), up to `reference_point`. `cheapest` costs least of those whose
    metric reaches the asked-for floor.
    """

    items: tuple[FrontPoint, ...]
    reference_point: tuple[float, float, float] | None
    hypervolume: float | None
    cheapest: FrontPoint | None


@dataclass(frozen=True, slots=True)
class ComparedTrial:
    """One column of a comparison."""

    trial: TrialView
    network: NetworkSpec
    eligible: tuple[str, ...]
    curves: Mapping[str, Curve]


@dataclass(frozen=True, slots=True)
class EventView:
    """One transition of a search, or of one of its trials."""

    id: int
    search_id: str
    trial_number: int | None
    attempt: int | None
    kind: str
    state: str
    reason: Reason
    sentence: str
    actor: str
    request_id: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class ArtifactView:
    """One upload: a matrix, `rows x columns`."""

    id: str
    kind: str
    sha256: str
    bytes: int
    tensor: str
    dtype: str
    rows: int
    columns: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker process: when it was last heard of, and the ids of the trials that it runs."""

    name: str
    seen_at: datetime
    alive: bool
    trials: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What was answered to an Idempotency-Key the first time."""

    status: int
    answer: dict[str, object]


@dataclass(frozen=True, slots=True)
class PastTrial:
    """What a trial may know of an earlier one; its files are those of `attempt`."""

    planned: PlannedTrial
    state: TrialState
    attempt: int
    settings: LearnerSettings | None
    validation_loss: float | None
    curve: Curve
    metrics: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one trial: every write of its holder carries `attempt`, the fence."""

    trial_id: str
    search_id: str
    attempt: int
    lease_until: datetime
    spec: SearchSpec
    planned: PlannedTrial
    settings: LearnerSettings | None
    history: tuple[PastTrial, ...]
    earlier: tuple[EarlierCandidate, ...]
    request_id: str | None
    trace: str | None


@dataclass(frozen=True, slots=True)
class Renewal:
    """Whether the claim still holds, and whether the trial is asked to stop, or to pause."""

    still_mine: bool
    stop: bool
    pause: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a running trial stands."""

    phase: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one curve."""

    name: str
    step: int
    value: float


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, in the words of whoever ran it."""

    state: TrialState
    reason: Reason = ""
    sentence: str = ""
    network: NetworkSpec | None = None
    metrics: Mapping[str, float] | None = None
    report: Report | None = None
    profile: ProfileReport | None = None
    times: Mapping[str, int] | None = None
