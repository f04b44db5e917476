"""What a search found, as one table: the measurement's rows, read from the exported files."""

from typing import Any

from pydantic import model_validator

from models.cost import Quantity
from models.forms import Form
from models.frozen import Spec
from models.spec import NetworkSpec
from search.plan import TrialKind
from search.recipe import Device, Precision

# The median of timed pairs, and their quartiles.
Ratio = tuple[float, float, float]


class Execution(Spec):
    """How all networks of a search are trained, and what was measured to decide it.

    The ratios are of the time of one step of the reference's training.
    """

    device: Device = "cpu"
    precision: Precision = "float32"
    compiled: bool = False
    processes: int = 1
    bfloat16_over_float32: Ratio | None = None
    compiled_over_eager: Ratio | None = None


PLAIN = Execution()


class ReportRow(Spec):
    """One exported network. Costs are of the eligible layers; `network_*` of everything.

    A matrix has no accuracy. The test part is read for the reference, the baselines and the best
    candidate only. Latency is the time over the dense reference's, measured in pairs; its quartiles
    are the spread. It is of the deployed network, in which every layer runs in the form that was
    fastest here: `forms` has those of the layers with a structure, in the network's order. Costs
    are of the structure all the same. The cost is in the budget's quantity; `smallest_step` is the
    least that could have been added to it, unless the budget is in time: then `times` has the parts
    of the cost by layer, as each was timed alone, and `predicted_latency_ratio` what follows for
    the whole network from the measured times of the dense one. With repeats, the deviation is over
    the seeds of the validation loss. `exceeds` names the ceilings of the search that it does not
    keep: then it never wins.
    """

    number: int
    name: str
    kind: TrialKind
    budget_index: int | None = None  # neither the reference, nor where it is drawn
    budget: int | None = None
    exceeds: tuple[str, ...] = ()
    validation_loss: float
    validation_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    cost: int
    smallest_step: int | None
    macs: int
    parameters: int
    network_macs: int
    network_parameters: int
    latency_ratio: float
    latency_quartiles: tuple[float, float]
    times: dict[str, int] | None = None
    predicted_latency_ratio: float | None = None
    forms: dict[str, Form]
    epochs: int
    repeats: int = 1
    validation_loss_mean: float | None = None
    validation_loss_deviation: float | None = None
    network: NetworkSpec

    @model_validator(mode="before")
    @classmethod
    def _older(cls, values: Any) -> Any:
        """Read reports that named the layers that run dense, if any, and no other form."""
        if not isinstance(values, dict) or "forms" in values:
            return values
        named = values.get("run_dense", ())
        others = {name: value for name, value in values.items() if name != "run_dense"}
        return others | {"forms": dict.fromkeys(named, "dense")}

    @property
    def run_dense(self) -> tuple[str, ...]:
        """The layers with a structure whose dense matrix is faster."""
        return tuple(name for name, form in self.forms.items() if form == "dense")


class BudgetResult(Spec):
    """What was found under one budget: the numbers of its best candidate and of its winner."""

    index: int
    share: float
    budget: int
    budget_macs: int
    best_candidate: int | None
    winner: int | None


class Importance(Spec):
    """What a hyper-parameter mattered under one budget: two shares of 1 over all that were drawn.

    `fanova` is of the variance of the validation loss; `ped_anova` of how the best quarter of the
    candidates differs from all of them.
    """

    budget_index: int
    name: str
    fanova: float
    ped_anova: float


class Report(Spec):
    """The evidence of a search: what was found beside every plain choice at the same budget.

    Where nothing keeps the search's limits, the reference stands for the winner.
    With several budgets, `budget` is the largest; `best_candidate` and `winner` are those of all
    budgets, and `results` has each budget's own. `front` numbers the networks that no other beats
    in validation loss, share of the dense cost and latency at once, the reference included, and
    `hypervolume` is what they cover of these three up to `reference_point`, a tenth above the worst
    of the table. Reports from before these were measured have none.
    `other_load` is the share of the machine that other processes used while latency was measured.
    """

    quantity: Quantity
    budget: int
    dense_cost: int
    budget_macs: int
    eligible_dense_macs: int
    eligible: tuple[str, ...]
    threads: int
    latency_batch: int
    other_load: float
    execution: Execution = PLAIN  # in reports from before it was a choice, the only one
    reference: ReportRow
    baselines: tuple[ReportRow, ...]
    candidates: tuple[ReportRow, ...]
    best_candidate: ReportRow | None
    winner: ReportRow
    results: tuple[BudgetResult, ...] = ()
    front: tuple[int, ...] = ()
    reference_point: tuple[float, float, float] | None = None
    hypervolume: float | None = None
    importances: tuple[Importance, ...] = ()

    @property
    def rows(self) -> tuple[ReportRow, ...]:
        """The whole table."""
        return (self.reference, *self.baselines, *self.candidates)

    @property
    def winners(self) -> frozenset[int]:
        """The numbers of all budgets' winners."""
        found = {result.winner for result in self.results if result.winner is not None}
        return frozenset(found or {self.winner.number})

    def budget_of(self, row: ReportRow) -> int:
        """The budget that held for a network."""
        return row.budget or self.budget
