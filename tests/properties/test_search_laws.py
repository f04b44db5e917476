"""What holds for the arithmetic of a search, whatever its sizes, supports and menus."""

import itertools
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cost import layer_cost, smallest_step
from models.spec import LayerSpec
from models.structured.mask import gaudi_mask
from models.structures import BlockDiagonal, Dense, Gblr, LowRank, Rectangle, Structure
from search.allocate import Item, allocate
from search.budget import Pieces, relaxed_cost, shrink_to
from search.discretize import bake, hard_size, harden, merged, merged_size, simplest
from search.filling import fill_groups, fill_merged
from search.plan import planned_trials, prerequisites
from search.relaxation import Relaxation, RelaxedLinear, inside, round_support, support_of
from search.sampling import propose
from search.spec import BudgetUnreachable, SearchSpec, SpecError
from search.study import known_candidates
from search.trial import FinishedTrial
from tests.properties.families import rectangles
from tests.unit.search.builders import finished, relaxed, tiny

# --- plan ----------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> SearchSpec:
    budgets: list[dict[str, Any]] = [
        {"budget": {"ratio": 0.4}},
        {"budget": {"ratios": [0.5, 0.4, 0.6]}},
        {"budget": {"ratios": [0.5, 0.4]}, "objectives": ["cost", "validation_loss"]},
    ]
    return tiny(
        **draw(st.sampled_from(budgets)),
        compute={"trials": draw(st.integers(0, 6)), "parallel": draw(st.integers(1, 4))},
        space={"baselines": draw(st.sampled_from([[], ["block_diagonal"]]))},
        repeats=draw(st.integers(1, 3)),
    )


@given(plans(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_run_in_any_allowed_order_a_search_always_finishes(
    spec: SearchSpec, chance: Random
) -> None:
    trials = planned_trials(spec)
    ended: set[int] = set()
    waiting = list(trials)
    while waiting:
        ready = [t for t in waiting if {p.number for p in prerequisites(t, trials, spec)} <= ended]
        assert ready, "nothing may start, but not all have ended"
        trial = chance.choice(ready)
        assert (trial.kind == "measurement") == (waiting == [trial])
        waiting.remove(trial)
        ended.add(trial.number)


@given(plans(), st.data())
@settings(max_examples=60)
def test_a_proposal_is_made_from_the_same_trials_whoever_finished_first(
    spec: SearchSpec, data: st.DataObject
) -> None:
    trials = planned_trials(spec)
    for trial in trials:
        if trial.kind != "candidate":
            continue
        needed = {p.number for p in prerequisites(trial, trials, spec) if p.kind == "candidate"}
        others = [t for t in trials if t.kind == "candidate" and t != trial]
        ended = data.draw(st.permutations(others))
        some = ended[: data.draw(st.integers(0, len(ended)))]
        history = [
            FinishedTrial(t, "COMPLETE", None, 1.0, (), None)
            for t in ended
            if t in some or t.number in needed
        ]
        known = known_candidates(spec, trial, history)
        assert [t.planned.number for t in known] == sorted(needed)


@given(st.permutations(range(5)))
@settings(max_examples=10)
def test_the_order_of_the_history_does_not_change_a_proposal(order: list[int]) -> None:
    spec = tiny(compute={"trials": 8}, space={"baselines": []})
    history = [finished(number, loss=1 / (1 + number)) for number in range(1, 6)]
    planned = planned_trials(spec)[6]
    expected = propose(spec, planned, history)
    assert propose(spec, planned, [history[index] for index in order]) == expected


# --- costs ---------------------------------------------------------------------------------------


@st.composite
def structured_layers(draw: st.DrawFn) -> LayerSpec:
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    smaller = min(rows, columns)
    structure: Structure = draw(
        st.one_of(
            st.just(Dense()),
            st.integers(1, smaller).map(lambda rank: LowRank(rank=rank)),
            st.integers(1, smaller).map(lambda blocks: BlockDiagonal(blocks=blocks)),
            st.lists(rectangles(rows, columns), max_size=4).map(
                lambda listed: Gblr(rectangles=tuple(listed))
            ),
        )
    )
    return LayerSpec(
        name="layer",
        rows=rows,
        columns=columns,
        tokens=draw(st.integers(1, 5)),
        structure=structure,
    )


def larger(layer: LayerSpec) -> list[Structure]:
    """Every change of the structure that adds within its kind, much or little."""
    rows, columns = layer.rows, layer.columns
    match layer.structure:
        case Dense():
            return []
        case LowRank(rank=rank):
            return [LowRank(rank=more) for more in range(rank + 1, min(rows, columns) + 1)]
        case BlockDiagonal(blocks=blocks):
            return [BlockDiagonal(blocks=fewer) for fewer in range(1, blocks)]
        case Gblr(rectangles=listed):
            return [
                Gblr(
                    rectangles=(
                        *listed[:index],
                        one.model_copy(update={"row_count": height, "column_count": width}),
                        *listed[index + 1 :],
                    )
                )
                for index, one in enumerate(listed)
                for height in range(one.row_count, rows + 1)
                for width in range(one.column_count, columns + 1)
            ]
        case other:
            raise AssertionError(f"no {other.kind} is drawn here")


@given(structured_layers(), st.sampled_from(["macs", "parameters"]))
def test_the_smallest_step_is_a_change_that_exists_and_none_is_smaller(
    layer: LayerSpec, quantity: str
) -> None:
    weight = layer.tokens if quantity == "macs" else 1
    size = layer.structure.parameter_count(rows=layer.rows, columns=layer.columns)
    added = {
        weight * (more.parameter_count(rows=layer.rows, columns=layer.columns) - size)
        for more in larger(layer)
    }
    expected = min((step for step in added if step > 0), default=None)
    assert smallest_step(layer, "macs" if quantity == "macs" else "parameters") == expected


# --- allocation ----------------------------------------------------------------------------------

MENUS = st.lists(
    st.lists(
        st.builds(Item, st.integers(1, 60), st.floats(0, 1).map(lambda error: round(error, 6))),
        min_size=1,
        max_size=5,
    ),
    min_size=1,
    max_size=4,
)


@given(MENUS, st.integers(1, 250), st.sampled_from([1, 16, 100_003]))
@settings(max_examples=80)
def test_an_allocation_is_as_good_as_trying_everything(
    menus: list[list[Item]], budget: int, weight: int
) -> None:
    menus = [[Item(item.cost * weight, item.error) for item in menu] for menu in menus]
    budget *= weight
    choices = list(itertools.product(*menus))
    possible = [
        sum(item.error for item in choice)
        for choice in choices
        if sum(item.cost for item in choice) <= budget
    ]
    if not possible:
        with pytest.raises(BudgetUnreachable, match="below the smallest cost"):
            allocate(menus, budget)
        return
    found = allocate(menus, budget)
    taken = [menu[index] for menu, index in zip(menus, found.chosen, strict=True)]
    assert found.cost == sum(item.cost for item in taken) <= budget
    assert found.error == sum(item.error for item in taken)
    assert found.error == pytest.approx(min(possible), rel=2e-4, abs=1e-5)
    assert found.bound <= found.error + 1e-9


@given(st.integers(0, 50), st.integers(1, 5))
@settings(max_examples=10)
def test_no_budget_is_too_large_to_be_held_exactly(seed: int, below: int) -> None:
    """Costs of millions without a common divisor are where a solver's tolerance shows."""
    menus = [
        [Item((1_000_003 + 77_777 * layer + seed) * rank, 0.8**rank) for rank in range(1, 12)]
        for layer in range(3)
    ]
    budget = allocate(menus, 20_000_000).cost - below
    assert allocate(menus, budget).cost <= budget


# --- relaxed layers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers:
    """Relaxed layers, and what one number of each costs."""

    layers: list[RelaxedLinear]
    weights: list[int]

    @property
    def cost(self) -> int:
        return relaxed_cost(self.layers, self.weights)

    @property
    def hard_cost(self) -> int:
        return sum(layer_cost(spec, "macs") for spec in self.hardened)

    @property
    def hardened(self) -> list[LayerSpec]:
        return [
            layer.layer.model_copy(update={"structure": harden(layer).spec})
            for layer in self.layers
        ]


@st.composite
def relaxed_layers(draw: st.DrawFn) -> Layers:
    found = [
        relaxed(
            draw(st.integers(4, 24)),
            draw(st.integers(4, 24)),
            groups=draw(st.integers(1, 6)),
            group=draw(st.sampled_from([1, 2, 4])),
            tokens=draw(st.sampled_from([1, 3])),
            seed=draw(st.integers(0, 10_000)),
            beside=draw(st.booleans()),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    for layer in found:
        if draw(st.booleans()):  # so that rectangles coincide, and low rank occurs
            rows, columns = layer.rectangles()
            rows[:], columns[:] = rows[0].clone(), columns[0].clone()
            layer.set_rectangles(rows, columns)
    return Layers(found, [layer.layer.tokens for layer in found])


PIECES: st.SearchStrategy[Pieces] = st.sampled_from(["ranks", "rectangles"])


@given(st.integers(1, 3000), st.data())
def test_a_side_of_whole_samples_survives_being_a_fraction(
    length: int, data: st.DataObject
) -> None:
    start, count = data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, length))
    side = torch.tensor([[start, count]])
    assert torch.equal(round_support(support_of(side, length), length), side)


@given(st.integers(2, 40), st.data())
def test_exact_masks_are_what_the_gaudi_mask_is_at_infinite_sigma(
    length: int, data: st.DataObject
) -> None:
    side = torch.tensor(
        [[data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, length))]]
    )
    support = support_of(side, length)
    mask = gaudi_mask(support[:, 0], support[:, 1], length)
    torch.testing.assert_close(mask, inside(side, length).float(), atol=1e-3, rtol=0)


@given(relaxed_layers(), st.floats(0, 1.2), PIECES)
def test_any_target_is_reached_and_nothing_grows(
    found: Layers, share: float, pieces: Pieces
) -> None:
    before = found.cost
    counts = [torch.stack(layer.rectangles())[..., 1] for layer in found.layers]
    target = int(share * before)
    shrink_to(found.layers, found.weights, target, pieces=pieces)
    assert found.cost <= target
    if target >= before:
        assert found.cost == before
    for layer, old in zip(found.layers, counts, strict=True):
        rows, columns = (side[:, 1] for side in layer.rectangles())
        alive = (rows > 0) & (columns > 0)
        assert bool(
            (rows[alive] <= old[0][alive]).all() and (columns[alive] <= old[1][alive]).all()
        )


@given(relaxed_layers())
def test_a_relaxed_cost_is_the_hard_cost_but_for_rectangles_that_are_merged(found: Layers) -> None:
    assert found.hard_cost <= found.cost
    assert found.hard_cost == sum(
        weight * hard_size(layer) for layer, weight in zip(found.layers, found.weights, strict=True)
    )
    for layer, weight in zip(found.layers, found.weights, strict=True):
        places = merged(layer)
        if all(len(groups) == 1 for groups in places.values()):
            size = merged_size(places, layer.group) + layer.beside_size
            assert relaxed_cost([layer], [weight]) == weight * size


@given(relaxed_layers())
@settings(max_examples=60)
def test_a_hard_layer_answers_as_the_relaxed_one_with_exact_masks(found: Layers) -> None:
    for layer in found.layers:
        Relaxation(layer, {"layer": layer}).refresh_masks()
        x = torch.randn(3, layer.layer.columns, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(harden(layer)(x), layer(x), atol=1e-4, rtol=1e-4)


@given(relaxed_layers())
@settings(max_examples=30)
def test_what_leaves_whole_takes_all_its_cost_with_it(found: Layers) -> None:
    for layer, weight in zip(found.layers, found.weights, strict=True):
        if layer.beside is None:
            continue
        before = relaxed_cost([layer], [weight])
        layer.alternative_saliency.zero_()
        shrink_to([layer], [weight], before - 1, pieces="rectangles")
        assert layer.beside is None
        assert relaxed_cost([layer], [weight]) == before - weight * layer.alternative_size


@given(relaxed_layers())
@settings(max_examples=60)
def test_a_baked_layer_answers_as_before_whatever_its_masks_become(found: Layers) -> None:
    for layer in found.layers:
        before = harden(layer).to_dense()
        bake(layer)
        assert torch.equal(harden(layer).to_dense(), before)
        rows, columns = (torch.zeros_like(side) for side in layer.rectangles())
        rows[:, 1], columns[:, 1] = layer.layer.rows, layer.layer.columns
        layer.set_rectangles(rows, columns)
        torch.testing.assert_close(harden(layer).to_dense(), before, atol=1e-4, rtol=1e-4)


@given(relaxed_layers(), st.floats(0.1, 2.0), PIECES)
@settings(max_examples=80)
def test_filled_groups_leave_no_room_for_another_row_column_or_term(
    found: Layers, share: float, pieces: Pieces
) -> None:
    budget = int(share * found.cost)
    shrink_to(found.layers, found.weights, budget, pieces=pieces)
    weights = [(layer.row_factors, layer.column_factors) for layer in found.layers]
    values = [(rows.clone(), columns.clone()) for rows, columns in weights]
    fill_groups(found.layers, found.weights, budget, pieces=pieces)
    slack = budget - found.cost
    assert slack >= 0
    for layer, (rows, columns), old in zip(found.layers, weights, values, strict=True):
        assert layer.row_factors is rows, "an optimiser goes on with the same parameters"
        assert layer.column_factors is columns
        assert torch.equal(rows, old[0])
        assert torch.equal(columns, old[1])
    for layer, weight in zip(found.layers, found.weights, strict=True):
        height, width, group = layer.layer.rows, layer.layer.columns, layer.group
        for row_count, column_count in torch.stack(layer.rectangles())[..., 1].T.tolist():
            now = min(row_count * column_count, group * (row_count + column_count))
            larger = [(height, width)] if not now else []
            if now and pieces == "rectangles":
                larger = [(min(height, row_count + 1), column_count)]
                larger += [(row_count, min(width, column_count + 1))]
            steps = [weight * (min(r * c, group * (r + c)) - now) for r, c in larger]
            assert all(slack < step for step in steps if step)


@given(relaxed_layers(), st.floats(0.1, 2.0), PIECES, st.booleans())
@settings(max_examples=150)
def test_what_is_left_of_a_budget_is_less_than_the_smallest_step(
    found: Layers, share: float, pieces: Pieces, groups_first: bool
) -> None:
    budget = max(1, int(share * found.cost))
    shrink_to(found.layers, found.weights, budget, pieces=pieces)
    if groups_first:
        fill_groups(found.layers, found.weights, budget, pieces=pieces)
    for layer in found.layers:
        bake(layer)
    before = [harden(layer).to_dense() for layer in found.layers]
    fill_merged(found.layers, found.weights, budget)
    slack = budget - found.hard_cost
    assert slack >= 0
    steps = [smallest_step(layer, "macs") for layer in found.hardened]
    assert all(slack < step for step in steps if step is not None)
    for layer, old in zip(found.layers, before, strict=True):
        torch.testing.assert_close(harden(layer).to_dense(), old, atol=1e-4, rtol=1e-4)


@given(relaxed_layers())
@settings(max_examples=30)
def test_dead_groups_vanish(found: Layers) -> None:
    for layer in found.layers:
        rows, columns = layer.rectangles()
        rows[:, 1] = 0
        layer.set_rectangles(rows, columns)
        hard = harden(layer)
        if layer.beside is not None:
            assert hard.spec == layer.beside.spec
            assert torch.equal(hard.to_dense(), layer.beside.to_dense())
            continue
        assert hard.spec == Gblr(rectangles=())
        assert torch.equal(hard.to_dense(), torch.zeros(layer.layer.rows, layer.layer.columns))


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_one_rectangle_over_everything_is_called_by_its_plain_name(
    rows: int, columns: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, min(rows, columns)))
    whole = Rectangle(row_start=0, row_count=rows, column_start=0, column_count=columns, rank=rank)
    found = simplest((whole,), rows=rows, columns=columns)
    assert found == (Dense() if whole.is_tile else LowRank(rank=rank))
    assert found.parameter_count(rows=rows, columns=columns) == whole.size
    two = (whole, whole)
    assert simplest(two, rows=rows, columns=columns) == Gblr(rectangles=two)


def test_a_spec_error_is_a_value_error_with_its_field() -> None:
    error = BudgetUnreachable("budget", "too small")
    assert isinstance(error, SpecError)
    assert str(error) == "budget: too small"


def test_a_tile_that_grows_to_the_whole_matrix_keeps_its_values() -> None:
    """Its terms beyond its rank are dropped, and come back at zero once there is room for them."""
    layer = relaxed(8, 8, groups=4, seed=5)
    layer.whole_saliency.fill_(1.0)
    side = torch.tensor([[0, 2]]).repeat(4, 1)
    layer.set_rectangles(side, side.clone())
    bake(layer)
    before = harden(layer).to_dense()
    fill_merged([layer], [1], 3 * (8 + 8))
    assert harden(layer).spec == LowRank(rank=3)
    torch.testing.assert_close(harden(layer).to_dense(), before, atol=1e-5, rtol=1e-5)
