"""Menus: what the items cost and spoil, and the exact choice among them under rules."""

import copy
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.cost import Quantity, layer_cost
from models.spec import LayerSpec
from models.structured.low_rank import DAMPING
from models.structured.output_error import output_error, regularised
from models.structures import Dense, LowRank
from models.structures.sizes import KINDS
from search.menu import LayerMenu, Menu, MenuItem
from search.menu_making import build_item, make_menu, near_shares
from search.profile import not_exchangeable
from search.profile_report import LeftDense
from search.profile_summary import summarise
from search.progress import Silent
from search.resolved import resolve
from search.rules import Rule
from search.settling import settle
from search.spec import BudgetUnreachable
from tests.unit.search.builders import tiny
from tests.unit.search.conftest import Trained

LAYERS = tuple(LayerSpec(name=f"layer{i}", rows=6, columns=5, tokens=i + 1) for i in range(3))


def test_an_item_costs_what_a_layer_of_its_structure_does(trained: Trained) -> None:
    for menu in trained.reference.profile.menu.layers:
        for item in menu.items:
            made = menu.layer.model_copy(update={"structure": item.structure})
            assert item.cost(menu.layer, "macs") == layer_cost(made, "macs")
            assert item.cost(menu.layer, "parameters") == layer_cost(made, "parameters")


def test_dense_is_on_every_menu_and_harms_nothing(trained: Trained) -> None:
    for menu in trained.reference.profile.menu.layers:
        (dense,) = [item for item in menu.items if item.kind == "dense"]
        assert (dense.harm, dense.error) == (0.0, 0.0)


def test_every_kind_of_the_space_that_saves_anything_is_there(trained: Trained) -> None:
    menu = trained.reference.profile.menu.layers[0]
    assert {item.kind for item in menu.items} == {"dense", *trained.resolved.structures}


def test_error_and_harm_are_those_of_the_layer_that_is_built(trained: Trained) -> None:
    for p, menu in zip(
        trained.reference.profile.layers, trained.reference.profile.menu.layers, strict=True
    ):
        assert p.curvature is not None
        root = torch.linalg.cholesky(regularised(p.curvature, DAMPING)).T
        whole = output_error(p.weight.double(), p.second_moment)
        for item in menu.items[:: max(1, len(menu.items) // 30)]:
            rest = p.weight.double() - build_item(p, item).to_dense().detach().double()
            error = output_error(rest, p.second_moment) / whole
            harm = p.layer.tokens * output_error(root @ rest, p.second_moment)
            # Between sizes that were measured both are interpolated: in blocks of 3 x 4, roughly.
            assert float(error) == pytest.approx(item.error, rel=1, abs=1e-6), item
            assert float(harm) == pytest.approx(item.harm, rel=1, abs=1e-6), item
            if item.kind in ("dense", "low rank", "block diagonal", "Monarch, rank 1"):
                assert float(error) == pytest.approx(item.error, rel=1e-3, abs=1e-6), item
            if item.kind in ("dense", "low rank", "Monarch, rank 1"):
                assert float(harm) == pytest.approx(item.harm, rel=1e-3, abs=1e-6), item


def test_a_second_menu_for_another_budget_fits_only_what_is_new(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, measured, resolved = tmp_path / "menu.json", trained.reference.profile, trained.resolved
    budget = resolved.budget
    first = make_menu(measured, resolved, [budget], Silent(), kept=file)
    monkeypatch.setattr("search.menu_making.project", None)  # would be called to fit anything
    assert make_menu(measured, resolved, [budget], Silent(), kept=file) == first


def test_a_menu_is_the_same_from_one_thread_and_from_two(trained: Trained, tmp_path: Path) -> None:
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        file, budgets = tmp_path / f"{threads}.json", [trained.resolved.budget]
        made.append(
            make_menu(trained.reference.profile, trained.resolved, budgets, Silent(), kept=file)
        )
        assert torch.get_num_threads() == threads
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["Monarch, rank 1", "BLAST, 4 x 4", "tensor train"])
def test_without_low_rank_the_least_budget_that_is_promised_is_on_the_menu(
    trained: Trained, kind: str, tmp_path: Path
) -> None:
    space = {"structures": [kind], "baselines": []}
    with pytest.raises(BudgetUnreachable) as refused:
        resolve(tiny(budget={"absolute": 1}, space=space))
    (least,) = (int(n) for n in re.findall(r"costs at least (\d+)", str(refused.value)))
    resolved = resolve(tiny(budget={"absolute": least}, space=space))
    menu = make_menu(
        trained.reference.profile, resolved, [least], Silent(), kept=tmp_path / "fits.json"
    )
    assert menu.allocate(resolved, least).cost == least


def test_sizes_are_fitted_one_by_one_near_the_budgets_only() -> None:
    assert near_shares([20], 100) == (0.15, 0.2, 0.3)
    assert near_shares([5, 60], 100) == (0.05, 0.07, 0.4, 0.5, 0.7)
    assert near_shares([1], 100) == (0.05,)


items = st.builds(
    MenuItem,
    kind=st.sampled_from(["low rank", "block diagonal", "BLAST, 4 x 4"]),
    structure=st.just(LowRank(rank=1)),
    macs=st.integers(1, 40),
    parameters=st.integers(1, 40),
    error=st.floats(0, 1),
    harm=st.floats(0, 1),
)
rules = st.builds(Rule, match=st.just("*"), at_most=st.floats(0.1, 1))


@given(
    st.lists(st.lists(items, min_size=1, max_size=5), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from([layer.name for layer in LAYERS]), rules),
    st.integers(1, 250),
    st.sampled_from(["macs", "parameters"]),
)
@settings(max_examples=60)
def test_an_allocation_is_the_best_of_all_choices_within_the_budget_and_the_rules(
    menus: list[list[MenuItem]], bound: dict[str, Rule], budget: int, quantity: Quantity
) -> None:
    layers = LAYERS[: len(menus)]
    resolved = resolve(tiny()).model_copy(update={"quantity": quantity, "rules": bound})
    whole = LayerMenu(layer=LAYERS[0], items=())
    dense = MenuItem(kind="dense", structure=Dense(), macs=30, parameters=30, error=0.0, harm=0.0)
    menu = Menu(
        layers=tuple(
            whole.model_copy(update={"layer": layer, "items": (dense, *found)})
            for layer, found in zip(layers, menus, strict=True)
        )
    )

    def may_be(one: LayerMenu, item: MenuItem) -> bool:
        cost = item.cost(one.layer, resolved.quantity)
        tokens = one.layer.tokens if quantity == "macs" else 1
        if one.layer.name in bound:
            known = (*resolved.structures, "dense")
            return item.kind in known and cost <= bound[one.layer.name].limit(
                resolved.dense(one.layer)
            )
        return cost >= 11 * tokens  # rank 1

    choices = [
        choice
        for choice in itertools.product(
            *([item for item in one.items if may_be(one, item)] for one in menu.layers)
        )
        if sum(i.cost(layer, resolved.quantity) for i, layer in zip(choice, layers, strict=True))
        <= budget
    ]
    if not choices:
        with pytest.raises(BudgetUnreachable):
            menu.allocate(resolved, budget)
        return
    found = menu.allocate(resolved, budget)
    best = min(sum(item.harm for item in choice) for choice in choices)
    assert found.cost <= budget
    assert found.harm == pytest.approx(best, rel=2e-4, abs=1e-9)
    assert found.bound <= best * (1 + 1e-6) + 1e-9


def test_the_whole_menu_harms_no_more_than_one_kind_alone(trained: Trained) -> None:
    resolved, menu = trained.resolved, trained.reference.profile.menu
    together = menu.allocate(resolved, resolved.budget)
    _, alone = trained.reference.profile.allocate_ranks(resolved, resolved.budget, "answer")
    assert together.harm <= alone.error * (1 + 1e-4)


def test_ruled_layers_are_settled_and_the_rest_is_an_ordinary_search(trained: Trained) -> None:
    bound = {"layers.1": Rule(match="layers.1", structures=("block diagonal",))}
    resolved = trained.resolved.model_copy(update={"rules": bound})
    settled = settle(trained.reference.network, trained.reference.profile, resolved)
    spec = {layer.name: layer for layer in settled.resolved.network.layers}
    assert spec["layers.1"].structure.kind == "block_diagonal"
    assert settled.resolved.eligible == ("layers.0",)
    assert [p.layer.name for p in settled.profile.layers] == ["layers.0"]
    assert settled.resolved.budget == resolved.budget - layer_cost(spec["layers.1"], "macs")
    assert settled.resolved.budget >= settled.resolved.smallest_cost
    assert trained.reference.network.get_submodule("layers.1") is not settled.network.get_submodule(
        "layers.1"
    )


def test_a_search_without_rules_is_settled_as_it_is(trained: Trained) -> None:
    settled = settle(trained.reference.network, trained.reference.profile, trained.resolved)
    assert settled.resolved is trained.resolved
    assert settled.network is trained.reference.network


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_on_a_menu(kind: str, trained: Trained, tmp_path: Path) -> None:
    resolved = trained.resolved.model_copy(update={"structures": (kind,)})
    first = type(trained.reference.profile)(trained.reference.profile.layers[1:])
    menu = make_menu(first, resolved, [resolved.budget], Silent(), kept=tmp_path / "menu.json")
    assert Menu.model_validate_json(menu.model_dump_json()) == menu
    for item in menu.layers[0].items:
        assert item.error >= 0
        assert item.harm >= 0


def test_layers_that_cannot_be_exchanged_are_left_dense_with_the_reason(trained: Trained) -> None:
    tied = copy.deepcopy(trained.reference.network)
    second = tied.get_submodule("layers.1")
    tied.add_module("twin", copy.deepcopy(second))
    tied.get_submodule("twin").weight = second.weight
    tied.set_submodule("layers.0", nn.Linear(64, 16))
    found = not_exchangeable(tied, ["layers.0", "layers.1", "head"])
    assert found == {
        "layers.0": "it is a Linear, not a dense linear layer",
        "layers.1": "it shares its numbers with twin",
    }


def test_what_is_left_dense_is_paid_from_the_budget(trained: Trained) -> None:
    whole, resolved = trained.reference.profile, trained.resolved
    left = replace(
        whole,
        layers=whole.layers[:1],
        menu=whole.menu.without(["layers.1"]),
        left_dense={"layers.1": "it is tied"},
    )
    settled = settle(trained.reference.network, left, resolved)
    assert settled.resolved.eligible == ("layers.0",)
    assert settled.resolved.budget == resolved.budget - 12 * 16
    told = summarise(left, resolved, [resolved.budget])
    assert told.left_dense == (LeftDense(layer="layers.1", reason="it is tied"),)
    assert told.allocations[0].cost <= resolved.budget
