"""How candidates are proposed, ended early and bounded: the part of a spec that Optuna is told."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from models.frozen import Spec


class Limits(Spec):
    """Ceilings of a found network beside its budget: a network that exceeds one never wins.

    The sampler is told by how much, and learns to keep below. `network_macs` and
    `network_parameters` are of the whole network; `latency_ratio` is its time over the dense one's,
    which is measured after each candidate where it is given.
    """

    network_macs: PositiveInt | None = None
    network_parameters: PositiveInt | None = None
    latency_ratio: PositiveFloat | None = None


SamplerName = Literal["tpe", "gp", "nsga2", "random", "grid"]
PrunerName = Literal[
    "median", "percentile", "patient", "successive_halving", "hyperband", "wilcoxon", "none"
]
GRID_LIMIT = 10_000  # points of a grid: as many as a search may have candidates


class Sampler(Spec):
    """Which of Optuna's samplers and pruners propose and stop the candidates.

    `grid` is how many values the grid takes of every range, and of the grid alone. A pruner's own
    number: `percentile`, the share of the candidates, in percent, that one must belong to;
    `patience`, how many epochs without progress the patient pruner forgives before it compares;
    `reduction`, of how many candidates one goes on at each rung of successive halving and
    Hyperband.
    """

    name: SamplerName = "tpe"
    pruner: PrunerName = "median"
    grid: Annotated[int, Field(ge=1, le=10)] | None = None
    percentile: Annotated[float, Field(gt=0, lt=100)] | None = None
    patience: Annotated[int, Field(ge=0, le=1000)] | None = None
    reduction: Annotated[int, Field(ge=2, le=100)] | None = None

    @model_validator(mode="after")
    def _no_number_without_effect(self) -> Self:
        owners: dict[str, tuple[str, ...]] = {
            "percentile": ("percentile",),
            "patience": ("patient",),
            "reduction": ("successive_halving", "hyperband"),
        }
        for name, pruners in owners.items():
            if getattr(self, name) is not None and self.pruner not in pruners:
                raise ValueError(f"{name} is of the pruner {' or '.join(pruners)}; leave it out")
        if self.grid is not None and self.name != "grid":
            raise ValueError("grid is of the sampler grid; leave it out")
        return self

    @property
    def grid_values(self) -> int:
        """How many values of every range a grid has."""
        return self.grid or 2
