"""What the API says, as schemas: nothing has a default, so nothing is said by omission."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, final

from pydantic import BaseModel, ConfigDict, Field, computed_field

from models.cost import Quantity
from models.frozen import Spec
from models.spec import LayerSpec, NetworkSpec
from models.structures import Structure
from search.layer_costs import LayerCosts
from search.plan import TrialKind, TrialState
from search.report import Importance
from search.spec import BaselineName, LearnerSettings, SearchSpec, Tag
from service.jobs import BestView, ComparedTrial, Curve, FrontPoint, ProgressView, WarmStartView
from service.lifecycle import Reason, SearchState


class Answer(BaseModel):
    """Read from the views of `service.jobs`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


@final
class SearchAnswer(Answer):
    """A search: its state, progress, best so far, and what it may cost."""

    id: str
    name: str | None
    tags: tuple[str, ...]
    state: SearchState
    reason: Reason
    sentence: str
    version: int
    priority: int
    progress: ProgressView
    best: BestView | None
    bests: tuple[BestView | None, ...]
    warm_start: WarmStartView | None
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
    spec: SearchSpec

    @computed_field  # type: ignore[prop-decorator]
    @property
    def links(self) -> dict[str, str]:
        """Where to go from here."""
        here = f"/v1/searches/{self.id}"
        parts = (
            *("trials", "events", "front", "artifacts", "spec", "report", "profile"),
            *("importances", "cancel", "pause", "resume", "kill", "clone"),
        )
        return {
            "self": here,
            **{part: f"{here}/{part}" for part in parts},
            "page": f"/view/{self.id}",
        }


@final
class TrialAnswer(Answer):
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
    worker: str | None = Field(validation_alias="owner")
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

    @computed_field  # type: ignore[prop-decorator]
    @property
    def validation_loss(self) -> float | None:
        """What it ended with, or the newest value while it runs."""
        return self.metrics.get("validation_loss", self.latest.get("validation_loss"))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def links(self) -> dict[str, str]:
        """Where to go from here."""
        search = f"/v1/searches/{self.search_id}"
        here = f"{search}/trials/{self.number}"
        drawing = {"structure": f"{here}/structure", "drawing": f"{here}/structure.svg"}
        return {"self": here, "search": search, "metrics": f"{here}/metrics", **drawing}


@final
class EventAnswer(Answer):
    """One transition of a search, or of one of its trials."""

    id: int
    trial_number: int | None
    attempt: int | None
    kind: str
    state: str
    reason: Reason
    sentence: str
    actor: str
    request_id: str | None
    at: datetime


@final
class CurvesAnswer(Answer):
    """The curves of a trial: (step, value), thinned with the extremes kept."""

    curves: Mapping[str, Curve]


@final
class LayerAnswer(Answer):
    """One linear layer: what it is made of, and its cost beside the dense layer's.

    What is not searched has no cost where that is time: it is not timed alone.
    """

    name: str
    rows: int
    columns: int
    tokens: int
    structure: Structure
    size: int
    cost: int | None
    dense_cost: int | None
    share: float | None
    eligible: bool

    @classmethod
    def of(cls, layer: LayerSpec, costs: LayerCosts, *, eligible: bool) -> "LayerAnswer":
        """Price one layer."""
        cost, dense = costs.of(layer) or (None, None)
        return cls(
            name=layer.name,
            rows=layer.rows,
            columns=layer.columns,
            tokens=layer.tokens,
            structure=layer.structure,
            size=layer.structure.parameter_count(rows=layer.rows, columns=layer.columns),
            cost=cost,
            dense_cost=dense,
            share=None if cost is None or not dense else cost / dense,
            eligible=eligible,
        )


@final
class StructureAnswer(Answer):
    """A found network; `cost` and `dense_cost` are of the eligible layers."""

    quantity: Quantity
    cost: int
    dense_cost: int
    layers: tuple[LayerAnswer, ...]
    network: NetworkSpec

    @classmethod
    def of(
        cls, network: NetworkSpec, costs: LayerCosts, eligible: tuple[str, ...]
    ) -> "StructureAnswer":
        """Price a network."""
        layers = tuple(
            LayerAnswer.of(layer, costs, eligible=layer.name in eligible)
            for layer in network.layers
        )
        searched = [layer for layer in layers if layer.eligible]
        return cls(
            quantity=costs.quantity,
            cost=sum(layer.cost or 0 for layer in searched),
            dense_cost=sum(layer.dense_cost or 0 for layer in searched),
            layers=layers,
            network=network,
        )


@final
class ComparedAnswer(Answer):
    """One column of a comparison."""

    trial: TrialAnswer
    structure: StructureAnswer
    curves: Mapping[str, Curve]

    @classmethod
    def of(cls, compared: ComparedTrial) -> "ComparedAnswer":
        """Count a compared network, in MACs, whatever its search's budget was in."""
        return cls(
            trial=TrialAnswer.model_validate(compared.trial),
            structure=StructureAnswer.of(compared.network, LayerCosts("macs"), compared.eligible),
            curves=compared.curves,
        )


@final
class LayerComparison(Answer):
    """One layer in every compared network, None where there is no such layer.

    It `differs` unless all have it, and have it made of the same.
    """

    name: str
    differs: bool
    cells: tuple[LayerAnswer | None, ...]


@final
class ComparisonAnswer(Answer):
    """2 to 8 found networks side by side."""

    trials: tuple[ComparedAnswer, ...]
    layers: tuple[LayerComparison, ...]

    @classmethod
    def of(cls, compared: tuple[ComparedTrial, ...]) -> "ComparisonAnswer":
        """Line the layers up by name, in the order in which they first occur."""
        columns = tuple(ComparedAnswer.of(one) for one in compared)
        tables = [{layer.name: layer for layer in one.structure.layers} for one in columns]
        names = dict.fromkeys(name for table in tables for name in table)
        layers = tuple(
            LayerComparison(name=name, differs=_differ(cells), cells=cells)
            for name in names
            for cells in [tuple(table.get(name) for table in tables)]
        )
        return cls(trials=columns, layers=layers)


def _differ(cells: tuple[LayerAnswer | None, ...]) -> bool:
    made = [None if cell is None else (cell.rows, cell.columns, cell.structure) for cell in cells]
    return any(one != made[0] for one in made)


@final
class ArtifactAnswer(Answer):
    """An upload; its id is what a spec names."""

    id: str
    kind: str
    sha256: str
    bytes: int
    tensor: str
    dtype: str
    rows: int
    columns: int
    created_at: datetime


@final
class FileAnswer(Answer):
    """A file that a search has made."""

    id: str
    name: str
    trial: int | None
    bytes: int
    sha256: str
    link: str


class Page(Answer):
    """A part of a list; `next` asks for what follows."""

    next: str | None


@final
class SearchList(Page):
    """Searches."""

    items: tuple[SearchAnswer, ...]


@final
class TrialList(Page):
    """Trials of one search."""

    items: tuple[TrialAnswer, ...]


@final
class EventList(Page):
    """Events of one search, oldest first."""

    items: tuple[EventAnswer, ...]


@final
class FileList(Answer):
    """Files of one search."""

    items: tuple[FileAnswer, ...]


@final
class ImportancesAnswer(Answer):
    """What each hyper-parameter mattered, budget by budget, the most important first."""

    items: tuple[Importance, ...]


@final
class FrontAnswer(Answer):
    """The networks of a search between loss, cost and latency.

    `hypervolume` is what the best of them cover up to the reference point, and `cheapest` costs
    least of those whose metric reaches the asked-for floor.
    """

    items: tuple[FrontPoint, ...]
    reference_point: tuple[float, float, float] | None
    hypervolume: float | None
    cheapest: FrontPoint | None


@final
class WorkerAnswer(Answer):
    """A worker process: when it was last heard of, and the ids of the trials that it runs."""

    name: str
    seen_at: datetime
    alive: bool
    trials: tuple[str, ...]


@final
class WorkerList(Answer):
    """The workers of the last day, the last heard of first."""

    items: tuple[WorkerAnswer, ...]


@final
class ComputeChanges(Spec):
    """What a live search may use more of; without `seconds`, as long as it takes."""

    trials: Annotated[int, Field(ge=0, le=10_000)] = 0
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None


@final
class SearchChanges(Spec):
    """What may be changed of a search; what is left out stays as it is.

    Searches with a higher `priority` go first. `compute` can only grow, and while the search lives.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    tags: Annotated[tuple[Tag, ...], Field(max_length=50)] = ()
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    compute: ComputeChanges = ComputeChanges()
