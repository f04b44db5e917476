"""Rules for single layers: what they admit, what they cost at least, and what each refusal says."""

from typing import Any

import pytest

from models.cost import dense_cost
from models.spec import LayerSpec, Mlp
from models.structures.sizes import KINDS, Kind, cost, grid
from search.plan import planned_trials
from search.resolved import resolve
from search.rules import Rule, smallest_cost, smallest_member
from search.spec import BudgetUnreachable, SpecError
from tests.unit.search.builders import tiny


def ruled(*rules: dict[str, Any], ratio: float = 0.4) -> Any:
    return resolve(tiny(layers={"rules": rules}, budget={"ratio": ratio}))


def test_the_first_rule_that_fits_a_layer_binds_it() -> None:
    found = ruled(
        {"match": "layers.0", "at_most": 0.5}, {"match": "layers.*", "structures": ["low rank"]}
    )
    assert found.rules["layers.0"] == Rule(match="layers.0", at_most=0.5)
    assert found.rules["layers.1"].structures == ("low rank",)


def test_a_rule_must_demand_something() -> None:
    with pytest.raises(ValueError, match="needs structures or at_most"):
        Rule(match="*")


def test_a_pattern_that_matches_no_searched_layer_is_named() -> None:
    with pytest.raises(
        SpecError, match=r"'head' matches no searched.*layers\.0, layers\.1"
    ) as told:
        ruled({"match": "*", "at_most": 0.9}, {"match": "head", "at_most": 0.5})
    assert told.value.field == "layers.rules[1].match"


def test_a_rule_that_another_always_hides_is_told_with_its_place() -> None:
    with pytest.raises(
        SpecError, match=r"'layers\.0' never holds: layers\.rules\[0\] \('\*'\)"
    ) as t:
        ruled({"match": "*", "at_most": 0.9}, {"match": "layers.0", "at_most": 0.5})
    assert t.value.field == "layers.rules[1].match"
    with pytest.raises(SpecError, match=r"layers\.rules\[0\] .* and layers\.rules\[1\]"):
        ruled(*({"match": one, "at_most": 0.9} for one in ("*.0", "*.1", "layers.*")))


def test_a_rule_that_leaves_a_layer_nothing_says_what_would_do() -> None:
    with pytest.raises(
        SpecError, match=r"0\.05 leaves layers\.0 \(16 x 64\).*\(low rank, 1\).*at least 0\.0782"
    ) as t:
        ruled({"match": "layers.0", "structures": ["low rank"], "at_most": 0.05})
    assert t.value.field == "layers.rules[0].at_most"
    ruled({"match": "layers.0", "structures": ["low rank"], "at_most": 0.0782})


def test_structures_that_save_nothing_in_a_layer_are_refused() -> None:
    with pytest.raises(
        SpecError, match=r"tiles of 64' saves nothing in layers\.1 \(12 x 16\)"
    ) as t:
        ruled({"match": "layers.1", "structures": ["block sparse, tiles of 64"]})
    assert t.value.field == "layers.rules[0].structures"


def test_a_budget_that_rules_put_out_of_reach_is_refused_with_the_layers_in_the_way() -> None:
    with pytest.raises(BudgetUnreachable, match=r"rules \(layers\.0 at least 1,024\).*1,052") as t:
        ruled({"match": "layers.0", "structures": ["dense"]})
    assert t.value.field == "budget"
    assert ruled({"match": "layers.0", "structures": ["dense"]}, ratio=0.9).smallest_cost == 1052


def test_a_budget_below_the_smallest_of_the_named_structures_is_refused_before_training() -> None:
    space = {"structures": ["BTT, 4 x 4"]}
    with pytest.raises(BudgetUnreachable, match=r"BTT.*in all 2.*layers\.0 at least 320") as told:
        resolve(tiny(space=space, budget={"ratio": 0.3}))
    assert "admit other structures" in told.value.sentence
    enough = resolve(tiny(space=space, budget={"ratio": 0.4}))
    assert enough.smallest_cost <= enough.budget


def test_a_layer_of_one_row_is_refused_by_name_unless_a_rule_keeps_it_dense() -> None:
    narrow = Mlp(hidden=(16, 1))
    with pytest.raises(SpecError, match=r"more than dense in layers\.1 \(1 x 16\)") as told:
        resolve(tiny(model=narrow))
    assert told.value.field == "layers.exclude"
    assert resolve(tiny(model=narrow, layers={"exclude": ["layers.1"]})).eligible == ("layers.0",)
    rules = [{"match": "layers.1", "structures": ["dense"]}]
    assert resolve(tiny(model=narrow, layers={"rules": rules})).rules.keys() == {"layers.1"}


def test_no_narrower_network_competes_where_rules_bind_layers() -> None:
    plan = planned_trials(tiny(layers={"rules": [{"match": "layers.0", "at_most": 0.5}]}))
    assert all(trial.family != "dense_shrunk" for trial in plan)


@pytest.mark.parametrize("kind", KINDS)
def test_no_member_of_a_kind_is_cheaper_than_its_smallest(kind: Kind) -> None:
    sides = {"rows": 24, "columns": 20}
    members = grid(kind, **sides, shares=[size / 480 for size in range(1, 480, 7)])
    least = smallest_member(kind, **sides)
    if least is None:
        assert not members
        return
    assert cost(kind, least, **sides) <= min(cost(kind, one, **sides) for one in members)


def test_the_smallest_cost_counts_the_tokens_of_a_layer() -> None:
    layer = LayerSpec(name="layer", rows=8, columns=4, tokens=5)
    assert smallest_cost(layer, ["low rank"], "macs") == 60
    assert smallest_cost(layer, ["low rank"], "parameters") == 12
    assert smallest_cost(layer, ["dense"], "macs") == dense_cost(layer, "macs")
