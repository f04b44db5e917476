"""What arithmetic makes of a spec before anything runs: the layers, their costs, its budgets."""

import math
from fnmatch import fnmatchcase

from pydantic import NonNegativeInt, PositiveInt

from models.cost import (
    UNITS,
    Counted,
    Quantity,
    dense_cost,
    layer_weight,
    network_macs,
    network_parameters,
)
from models.frozen import Spec
from models.spec import (
    LayerSpec,
    Matrix,
    MatrixTask,
    NetworkSpec,
    Task,
    default_layers,
    dense_network,
)
from models.structures import LowRank
from models.structures.sizes import Kind
from search.latency_table import WHOLE, Prices
from search.rules import Rule, RuleRefused, in_the_way, least_costs, rules_by_layer
from search.sampler import Limits
from search.spec import Budget, BudgetUnreachable, SearchSpec, SpecError, dataset_task


class ResolvedSearch(Spec):
    """A spec with everything that arithmetic can know filled in.

    `budget` is the one in force: the largest of `budgets` for what they share, a trial's own where
    one of them is chosen by `under`. Of a budget in time nobody knows the smallest cost, 0 here,
    nor any price, until layers are measured; costs are in millionths of the dense layers' time.
    """

    network: NetworkSpec
    eligible: tuple[str, ...]
    quantity: Quantity
    budget: PositiveInt
    budgets: tuple[PositiveInt, ...]
    dense_cost: PositiveInt
    smallest_cost: NonNegativeInt
    structures: tuple[Kind, ...] = ()
    rules: dict[str, Rule] = {}
    prices: Prices | None = None

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The eligible layers, dense."""
        return tuple(layer for layer in self.network.layers if layer.name in self.eligible)

    @property
    def counted(self) -> Counted:
        """The quantity of a search whose costs are counted, not measured."""
        assert self.quantity != "latency", "times are measured"
        return self.quantity

    @property
    def measured(self) -> Prices:
        """What layers take, of a search under a budget in time."""
        assert self.prices is not None, "layers are measured before anything is chosen"
        return self.prices

    def dense(self, layer: LayerSpec) -> int:
        """What a searched layer costs dense."""
        if self.quantity == "latency":
            return self.measured.dense(layer)
        return dense_cost(layer, self.quantity)

    def low_rank(self, layer: LayerSpec, rank: int) -> int:
        """What a rank costs in a searched layer; in time, as estimated, and no more than dense."""
        size = rank * (layer.rows + layer.columns)
        if self.quantity == "latency":
            return self.measured.estimate(layer, "low rank", size)
        return layer_weight(layer, self.quantity) * size

    def priced(self, prices: Prices) -> "ResolvedSearch":
        """Return the same search with its layers' times known."""
        return self.model_copy(update={"prices": prices})

    def under(self, index: int) -> "ResolvedSearch":
        """Return the same search under one of its budgets."""
        return self.model_copy(update={"budget": self.budgets[index]})

    def within(self, share: float) -> "ResolvedSearch":
        """Return the same search under a share of the dense cost."""
        return self.model_copy(update={"budget": int(share * self.dense_cost + 1e-6)})


def resolve(spec: SearchSpec, *, matrix: MatrixTask | None = None) -> ResolvedSearch:
    """Check a spec against its network; `matrix` is the shape of the artifact it names, if any.

    Raises SpecError with the field and the remedy.
    """
    task = _task(spec, matrix)
    try:
        network = dense_network(spec.model, task)
    except ValueError as error:
        raise SpecError("model", str(error)) from error
    eligible = _eligible(spec, network)
    layers = [layer for layer in network.layers if layer.name in eligible]
    quantity = spec.budget.quantity
    if quantity == "latency":
        _check_can_be_timed(spec)
        dense = WHOLE
    else:
        dense = sum(dense_cost(layer, quantity) for layer in layers)
    budgets = _budgets(spec.budget, dense)
    try:
        rules = rules_by_layer(
            spec.layers.rules, layers, quantity=quantity, otherwise=spec.space.structures
        )
    except RuleRefused as error:
        raise SpecError(error.field, error.sentence) from error
    smallest = 0
    if quantity != "latency":
        _check_ranks_save([layer for layer in layers if layer.name not in rules])
        structures = spec.space.structures
        least = least_costs(layers, rules, quantity, structures)
        smallest = sum(least.values())
        remedies = ("relax the rules, " if rules else "") + (
            "" if "low rank" in structures else "admit other structures, "
        )
        for index, budget in enumerate(budgets):
            if budget < smallest:
                raise BudgetUnreachable(
                    budget_field(spec.budget, index),
                    f"a budget of {budget:,} {UNITS[quantity]} cannot be reached: "
                    f"{in_the_way(least, rules, structures)} {smallest:,} "
                    f"(ratio {_up(smallest / dense):.4f}); ask for at least that, {remedies}or "
                    "exclude layers",
                )
    _check_limits(spec.limits, network, layers)
    return ResolvedSearch(
        network=network,
        eligible=eligible,
        quantity=quantity,
        budget=max(budgets),
        budgets=budgets,
        dense_cost=dense,
        smallest_cost=smallest,
        structures=spec.space.structures,
        rules=rules,
    )


def _up(ratio: float) -> float:
    """Round to four digits so that what is asked for with them suffices."""
    return math.ceil(ratio * 10_000) / 10_000


def budget_field(budget: Budget, index: int) -> str:
    """Name the field that one of the budgets stands in."""
    return "budget" if budget.ratios is None else f"budget.ratios[{index}]"


def least_times(resolved: ResolvedSearch) -> dict[str, int]:
    """Return what each layer takes at least, of what its rule admits or the search's structures."""
    least = {}
    for layer in resolved.layers:
        rule = resolved.rules.get(layer.name)
        kinds = resolved.structures if rule is None else rule.kinds(resolved.structures)
        least[layer.name] = resolved.measured.least(layer, kinds)
    return least


def check_in_time(resolved: ResolvedSearch, budget: Budget) -> None:
    """Refuse a budget in time below what the layers take at least, as measured.

    Raises BudgetUnreachable.
    """
    prices, rules, least = resolved.measured, resolved.rules, least_times(resolved)
    smallest = sum(least.values())
    dearest = ", ".join(
        f"{name} at least {least[name] / prices.parts[name]:.0%} of its own"
        for name in sorted(least, key=lambda name: -least[name])[:3]
    )
    for index, allowed in enumerate(resolved.budgets):
        if allowed < smallest:
            raise BudgetUnreachable(
                budget_field(budget, index),
                f"{allowed / WHOLE:.4f} of the dense layers' time cannot be reached: measured "
                f"here, the {len(least)} eligible layers take at least a ratio of "
                f"about {_up(smallest / WHOLE):.4f} ({dearest}); ask for more than that, for what "
                "is made is timed once more, "
                f"{'relax the rules, ' if rules else ''}admit other structures, or exclude layers",
            )


def _check_ranks_save(layers: list[LayerSpec]) -> None:
    """Refuse to search layers of one row or one column, which no structure makes cheaper."""
    vectors = [layer for layer in layers if min(layer.rows, layer.columns) == 1]
    if vectors:
        named = ", ".join(f"{one.name} ({one.rows} x {one.columns})" for one in vectors)
        raise SpecError(
            "layers.exclude",
            f"rank 1 costs more than dense in {named}; exclude what has one row or one column, or "
            "keep it dense by a rule",
        )


def _check_can_be_timed(spec: SearchSpec) -> None:
    """Refuse what cannot keep a budget in time: what is chosen by other means than prices."""
    learner = spec.space.learner
    scratch = (
        "scratch has rectangles of its own, whose times are not known; under a latency budget "
        "take answer, output or uniform"
    )
    refused = {
        "budget.quantity": (
            "latency is of a network's layers; for a single matrix take macs or parameters"
            if isinstance(spec.model, Matrix)
            else None
        ),
        "space.starts": scratch if "scratch" in spec.space.starts else None,
        "space.learner.start": scratch if learner.start == "scratch" else None,
        "space.learner.structures": (
            "competing adds structures up, whose times do not add up; under a latency budget take "
            "auto, menu or rectangles"
            if learner.structures == "competing"
            else None
        ),
        "space.learner.metric": (
            "uniform shortens rectangles, which saves no time; under a latency budget take "
            "curvature or gradient"
            if learner.metric == "uniform"
            else None
        ),
        "compute.processes": (
            "must be 1 under a latency budget: what is found is timed while it is trained"
            if spec.compute.processes > 1
            else None
        ),
    }
    for field, sentence in refused.items():
        if sentence is not None:
            raise SpecError(field, sentence)


def _task(spec: SearchSpec, matrix: MatrixTask | None) -> Task:
    if spec.dataset is not None:
        return dataset_task(spec.dataset, spec.model)
    if matrix is None:
        raise SpecError("model.artifact", "no such matrix has been uploaded; PUT /artifacts first")
    return matrix


def _budgets(budget: Budget, dense: int) -> tuple[int, ...]:
    if budget.absolute is not None and budget.absolute > dense:
        raise SpecError(
            "budget.absolute",
            f"{budget.absolute:,} is more than the {dense:,} that the eligible layers cost dense",
        )
    return budget.costs(dense)


def _check_limits(limits: Limits, network: NetworkSpec, layers: list[LayerSpec]) -> None:
    smallest = network.with_structures({layer.name: LowRank(rank=1) for layer in layers})
    reachable = {
        "network_macs": network_macs(smallest),
        "network_parameters": network_parameters(smallest),
    }
    for name, least in reachable.items():
        ceiling = getattr(limits, name)
        if ceiling is not None and ceiling < least:
            raise SpecError(
                f"limits.{name}",
                f"{ceiling:,} cannot be kept: with rank 1 in all {len(layers)} eligible layers the "
                f"network still has {least:,}; ask for at least that, or include more layers",
            )


def _eligible(spec: SearchSpec, network: NetworkSpec) -> tuple[str, ...]:
    names = [layer.name for layer in network.layers]
    include = spec.layers.include or default_layers(spec.model)
    patterns = (("layers.include", include), ("layers.exclude", spec.layers.exclude))
    for field, listed in patterns:
        for pattern in listed:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise SpecError(
                    field, f"{pattern!r} matches no layer; the layers are {', '.join(names)}"
                )
    eligible = tuple(
        name
        for name in names
        if any(fnmatchcase(name, pattern) for pattern in include)
        and not any(fnmatchcase(name, pattern) for pattern in spec.layers.exclude)
    )
    if not eligible:
        raise SpecError("layers.exclude", "the patterns leave no layer to search")
    return eligible
