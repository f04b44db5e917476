"""What a search found, as one table: the measurement's rows, read from the exported files."""

from typing import Any

from pydantic import model_validator

from models.cost import Quantity
from models.forms import Form
from models.frozen import Spec
from models.spec import NetworkSpec
from search.plan import TrialKind
from search.spec import Device, Precision

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
    least that could have been added to it. With repeats, the deviation is over the seeds of the
    validation loss.
    """

    number: int
    name: str
    kind: TrialKind
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


class Report(Spec):
    """The evidence of a search: what was found beside every plain choice at the same budget.

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
