"""What a search's spec admits, and what each refusal says."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from models.cost import dense_cost, layer_cost
from models.spec import MatrixTask, Mlp, Vit
from models.structures import LowRank
from search.resolved import resolve
from search.spec import Budget, BudgetUnreachable, SearchSpec, SpecError
from tests.unit.search.builders import matrix_spec, tiny

VIT: dict[str, Any] = {
    "model": Vit(patch=4, width=16, depth=2, heads=4),
    "budget": {"ratio": 0.3},
}


@pytest.mark.parametrize(
    "spec",
    [
        tiny(),
        matrix_spec(),
        tiny(**VIT, layers={"include": ["blocks.0.*"], "exclude": ["*.qkv"]}, seed=7),
        tiny(name="mine", tags=["a", "b"], repeats=3, budget={"absolute": 500}),
        tiny(space={"learner": {"group": 4, "pieces": "ranks"}, "starts": ["uniform"]}),
    ],
)
def test_a_spec_survives_the_journey_through_json(spec: SearchSpec) -> None:
    assert SearchSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_resolved_search_survives_the_journey_through_json() -> None:
    found = resolve(tiny())
    assert type(found).model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("colour", 1),
        ("budget", {"ratio": 0.5, "kind": "macs"}),
        ("compute", {"gpus": 1}),
        ("training", {"momentum": 0.9}),
        ("space", {"learner": {"sigma": 1}}),
        ("model", {"kind": "mlp", "hidden": [8], "width": 3}),
    ],
)
def test_an_unknown_field_is_refused_wherever_it_stands(where: str, value: object) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        tiny(**{where: value})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ratio": 0.5, "absolute": 10},
        {"ratio": 0.5, "ratios": [0.5, 0.2]},
        {"ratios": [0.5, 0.2], "absolute": 10},
    ],
)
def test_a_budget_is_given_exactly_once(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of ratio, ratios and absolute"):
        Budget.model_validate(fields)


@pytest.mark.parametrize("ratios", [[], [0.3], [0.3, 0.3], [0.3, 1.2], [0.1] * 9])
def test_several_budgets_are_two_to_eight_different_shares(ratios: list[float]) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate({"ratios": ratios})


def test_several_budgets_are_resolved_each_in_the_order_given() -> None:
    found = resolve(tiny(budget={"ratios": [0.3, 0.6]}))
    assert found.budgets == tuple(
        resolve(tiny(budget={"ratio": ratio})).budget for ratio in (0.3, 0.6)
    )
    assert found.budget == found.budgets[1], "the largest is what they share"
    assert found.under(0).budget == found.budgets[0]


def test_the_one_of_several_budgets_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(BudgetUnreachable, match="rank 1 in all") as told:
        resolve(tiny(budget={"ratios": [0.5, 0.001]}))
    assert told.value.field == "budget.ratios[1]"


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"ratio": 0}},
        {"budget": {"ratio": 1.01}},
        {"budget": {"absolute": 0}},
        {"budget": {"ratio": float("nan")}},
        {"compute": {"epochs": 0}},
        {"compute": {"parallel": 0}},
        {"space": {"shrink": {"low": 2, "high": 1}}},
        {"space": {"groups": []}},
        {"training": {"distillation": 1.5}},
        {"repeats": 0},
        {"seed": -1},
        {"dataset": "cifar"},
        {"dataset": None},
        {"model": {"kind": "vit", "width": 30, "heads": 4}},
    ],
)
def test_a_value_that_can_never_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tiny(**changes)


def test_a_matrix_brings_its_own_data() -> None:
    with pytest.raises(ValidationError, match="dataset must be left out"):
        matrix_spec(dataset="digits")


def test_a_spec_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        tiny().seed = 3  # type: ignore[misc]


def test_embedding_and_head_are_not_searched_unless_asked_for() -> None:
    assert resolve(tiny()).eligible == ("layers.0", "layers.1")
    names = resolve(tiny(**VIT)).eligible
    assert len(names) == 8
    assert all(name.startswith("blocks.") for name in names)


def test_patterns_choose_the_layers() -> None:
    layers = {"include": ["*"], "exclude": ["layers.1"]}
    assert resolve(tiny(layers=layers)).eligible == ("layers.0", "head")


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_named_with_the_layers_there_are(field: str) -> None:
    with pytest.raises(SpecError, match=r"'block\.\*' matches no layer.*layers\.0.*head") as told:
        resolve(tiny(layers={field: ["block.*"]}))
    assert told.value.field == f"layers.{field}"


def test_patterns_that_leave_no_layer_are_refused() -> None:
    with pytest.raises(SpecError, match="leave no layer") as told:
        resolve(tiny(layers={"exclude": ["*"]}))
    assert told.value.field == "layers.exclude"


def test_a_ratio_is_of_the_eligible_layers_dense_cost() -> None:
    found = resolve(tiny(budget={"ratio": 0.5}))
    assert found.dense_cost == 64 * 16 + 16 * 12
    assert found.budget == found.dense_cost // 2


def test_an_absolute_budget_is_taken_as_it_is() -> None:
    assert resolve(tiny(budget={"absolute": 444})).budget == 444


def test_a_ratio_loses_nothing_to_floating_point() -> None:
    """0.29 * 100 is 28.999... in binary, but 29 in the spec."""
    task = MatrixTask(rows=10, columns=10)
    assert resolve(matrix_spec(budget={"ratio": 0.29}), matrix=task).budget == 29


def test_a_whole_ratio_is_the_dense_cost() -> None:
    found = resolve(tiny(budget={"ratio": 1.0}))
    assert found.budget == found.dense_cost


def test_macs_count_every_token_and_parameters_do_not() -> None:
    macs = resolve(tiny(**VIT))
    parameters = resolve(tiny(**VIT | {"budget": {"ratio": 0.3, "quantity": "parameters"}}))
    assert macs.dense_cost == 4 * parameters.dense_cost
    assert macs.smallest_cost == 4 * parameters.smallest_cost
    assert macs.dense_cost == sum(dense_cost(layer, "macs") for layer in macs.layers)


def test_more_than_dense_is_refused() -> None:
    with pytest.raises(SpecError, match="more than the 1,216") as told:
        resolve(tiny(budget={"absolute": 1217}))
    assert told.value.field == "budget.absolute"


@pytest.mark.parametrize("quantity", ["macs", "parameters"])
def test_an_unreachable_budget_names_the_smallest_one_and_that_one_works(quantity: str) -> None:
    changes = VIT | {"budget": {"absolute": 10, "quantity": quantity}}
    with pytest.raises(BudgetUnreachable, match="rank 1 in all 8") as told:
        resolve(tiny(**changes))
    assert told.value.field == "budget"
    named = re.search(r"costs ([\d,]+) \(ratio ([\d.]+)\)", told.value.sentence)
    assert named is not None
    smallest = int(named[1].replace(",", ""))
    exactly = resolve(tiny(**changes | {"budget": {"absolute": smallest, "quantity": quantity}}))
    assert exactly.budget == exactly.smallest_cost == smallest
    ranks = {layer.name: LowRank(rank=1) for layer in exactly.layers}
    network = exactly.network.with_structures(dict(ranks))
    eligible = [layer for layer in network.layers if layer.name in exactly.eligible]
    assert sum(layer_cost(layer, exactly.counted) for layer in eligible) == smallest
    by_ratio = {"ratio": float(named[2]), "quantity": quantity}
    assert resolve(tiny(**changes | {"budget": by_ratio})).budget >= smallest
    with pytest.raises(BudgetUnreachable):
        resolve(tiny(**changes | {"budget": {"absolute": smallest - 1, "quantity": quantity}}))


@pytest.mark.parametrize("hidden", [(9, 7), (31, 5), (100, 3), (64, 64), (17,)])
def test_the_smallest_ratio_that_is_named_is_reachable(hidden: tuple[int, ...]) -> None:
    model = Mlp(hidden=hidden)
    with pytest.raises(BudgetUnreachable) as told:
        resolve(tiny(model=model, budget={"absolute": 1}))
    named = re.search(r"ratio ([\d.]+)", told.value.sentence)
    assert named is not None
    resolve(tiny(model=model, budget={"ratio": float(named[1])}))


def test_a_matrix_needs_the_shape_of_its_artifact() -> None:
    with pytest.raises(SpecError, match="no such matrix has been uploaded") as told:
        resolve(matrix_spec())
    assert told.value.field == "model.artifact"


def test_the_shape_of_the_artifact_is_the_network() -> None:
    found = resolve(matrix_spec(), matrix=MatrixTask(rows=24, columns=16))
    assert found.eligible == ("matrix",)
    assert (found.dense_cost, found.budget, found.smallest_cost) == (384, 192, 40)


def test_a_patch_that_does_not_divide_the_image_is_the_models_fault() -> None:
    with pytest.raises(
        SpecError, match="patch is 3, but height 8 and width 8 admit 1, 2, 4, 8"
    ) as told:
        resolve(tiny(model=Vit(patch=3, width=16, depth=1, heads=4)))
    assert told.value.field == "model"


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="heads is 3, but width 16 admits 1, 2, 4, 8, 16"):
        Vit(patch=4, width=16, heads=3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"compute": {"trials": 10_001}}, "less than or equal to 10000"),
        ({"compute": {"epochs": 100_001}}, "less than or equal to 100000"),
        ({"compute": {"reference_epochs": 100_001}}, "less than or equal to 100000"),
        ({"compute": {"parallel": 1025}}, "less than or equal to 1024"),
        ({"training": {"batch": 65_537}}, "less than or equal to 65536"),
        ({"repeats": 101}, "less than or equal to 100"),
        ({"seed": 2**31}, "less than or equal to 2147483647"),
        ({"tags": ["tag"] * 51}, "at most 50 items"),
        ({"layers": {"include": ["*"] * 101}}, "at most 100 items"),
        ({"layers": {"exclude": ["*"] * 101}}, "at most 100 items"),
    ],
)
def test_what_is_absurd_is_refused_with_the_most_there_may_be(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence):
        tiny(**changes)
