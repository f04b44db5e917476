"""What arithmetic makes of a spec before anything runs: the layers, their costs, its budgets."""

import math
from fnmatch import fnmatchcase

from pydantic import PositiveInt

from models.cost import (
    UNITS,
    Quantity,
    dense_cost,
    network_macs,
    network_parameters,
)
from models.frozen import Spec
from models.spec import (
    LayerSpec,
    MatrixTask,
    NetworkSpec,
    Task,
    default_layers,
    dense_network,
)
from models.structures import LowRank
from models.structures.sizes import Kind
from search.rules import Rule, RuleRefused, in_the_way, least_costs, rules_by_layer
from search.sampler import Limits
from search.spec import Budget, BudgetUnreachable, SearchSpec, SpecError, dataset_task


class ResolvedSearch(Spec):
    """A spec with everything that arithmetic can know filled in.

    `budget` is the one in force: the largest of `budgets` for what they share, a trial's own where
    one of them is chosen by `under`.
    """

    network: NetworkSpec
    eligible: tuple[str, ...]
    quantity: Quantity
    budget: PositiveInt
    budgets: tuple[PositiveInt, ...]
    dense_cost: PositiveInt
    smallest_cost: PositiveInt
    structures: tuple[Kind, ...] = ()
    rules: dict[str, Rule] = {}

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The eligible layers, dense."""
        return tuple(layer for layer in self.network.layers if layer.name in self.eligible)

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
    dense = sum(dense_cost(layer, quantity) for layer in layers)
    budgets = _budgets(spec.budget, dense)
    try:
        rules = rules_by_layer(
            spec.layers.rules, layers, quantity=quantity, otherwise=spec.space.structures
        )
    except RuleRefused as error:
        raise SpecError(error.field, error.sentence) from error
    least = least_costs(layers, rules, quantity, spec.space.structures)
    smallest = sum(least.values())
    for index, budget in enumerate(budgets):
        if budget < smallest:
            raise BudgetUnreachable(
                "budget" if spec.budget.ratios is None else f"budget.ratios[{index}]",
                f"a budget of {budget:,} {UNITS[quantity]} cannot be reached: "
                f"{in_the_way(least, rules)} {smallest:,} "
                f"(ratio {math.ceil(smallest / dense * 10_000) / 10_000:.4f}); "
                f"ask for at least that, {'relax the rules, ' if rules else ''}or exclude layers",
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
