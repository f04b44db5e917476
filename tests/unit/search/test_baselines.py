"""Every plain family is made within the budget, and as large as it can be."""

from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from models.cost import dense_cost, layer_cost
from models.spec import Gpt, Mixer, Mlp, Model, Vit, dense_network
from models.structured.low_rank import LowRankLinear
from models.structured.output_error import output_error
from models.structures import Dense
from search.baselines import build_baseline, shrunk, uniform_ranks
from search.evaluation import network_cost
from search.families import even_members
from search.resolved import resolve
from search.spec import BudgetUnreachable, BuiltBaseline
from tests.unit.search.builders import tiny
from tests.unit.search.conftest import Trained

# On a 12 x 16 matrix even the least members of these take more than such a share.
NONE = {("tensor_train", 0.3), ("btt", 0.3), ("btt", 0.5)}


@pytest.mark.parametrize(
    ("family", "ratio"),
    [
        (family, ratio)
        for family in get_args(BuiltBaseline)
        for ratio in (0.3, 0.5, 0.9)
        if (family, ratio) not in NONE
    ],
)
def test_a_family_is_built_within_the_budget_and_runs(
    trained: Trained, family: BuiltBaseline, ratio: float
) -> None:
    resolved = resolve(tiny(budget={"ratio": ratio}))
    spec, network = build_baseline(
        family,
        trained.reference.network,
        trained.reference.profile,
        resolved,
        generator=torch.Generator().manual_seed(0),
    )
    assert 0 < network_cost(spec, resolved).cost <= resolved.budget
    assert network(trained.data.validation.inputs).shape[1] == 10


@pytest.mark.parametrize("ratio", [0.2, 0.25, 0.4, 1.0])
def test_uniform_ranks_reach_every_budget_that_pays_for_rank_1(ratio: float) -> None:
    smallest = resolve(tiny(budget={"ratio": 1.0})).smallest_cost
    for budget in (smallest, int(ratio * 1216)):
        if budget < smallest:
            continue
        resolved = resolve(tiny(budget={"absolute": budget}))
        ranks = uniform_ranks(resolved, budget)
        costs = [resolved.low_rank(p, r) for p, r in zip(resolved.layers, ranks, strict=True)]
        assert min(ranks) >= 1
        assert sum(costs) <= budget


def test_uniform_ranks_below_rank_1_are_unreachable() -> None:
    resolved = resolve(tiny())
    with pytest.raises(BudgetUnreachable, match="rank 1 in every layer"):
        uniform_ranks(resolved, resolved.smallest_cost - 1)


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        (Mlp(hidden=(40, 30)), "digits"),
        (Vit(patch=4, width=32, depth=2), "digits"),
        (Mixer(patch=2, width=30, depth=2, token_hidden=12), "digits"),
        (Gpt(context=16, width=32, depth=2), "state-of-the-union"),
    ],
)
def test_the_shrunk_network_is_dense_and_the_next_wider_one_is_too_large(
    model: Mlp | Vit | Mixer | Gpt, dataset: str
) -> None:
    resolved = resolve(tiny(model=model, dataset=dataset, budget={"ratio": 0.3}))
    found = shrunk(resolved)
    assert all(layer.structure == Dense() for layer in found.layers)
    assert network_cost(found, resolved).cost <= resolved.budget
    wider = _wider(found.model)
    layers = dense_network(wider, resolved.network.task).layers
    eligible = [layer for layer in layers if layer.name in resolved.eligible]
    assert sum(dense_cost(layer, "macs") for layer in eligible) > resolved.budget


def _wider(model: object) -> Model:
    match model:
        case Mixer(width=width):
            hidden = round(12 * (width + 1) / 30)
            return model.model_copy(update={"width": width + 1, "token_hidden": hidden})
        case Vit(width=width, heads=heads) | Gpt(width=width, heads=heads):
            return model.model_copy(update={"width": width + heads})
        case Mlp(hidden=hidden):
            top = max(hidden) + 1
            return model.model_copy(update={"hidden": tuple(round(h * top / 40) for h in (40, 30))})
        case _:
            raise AssertionError(model)


def test_blocks_are_as_few_as_the_share_of_each_layer_allows(trained: Trained) -> None:
    resolved = trained.resolved
    spec, _ = build_baseline(
        "block_diagonal",
        trained.reference.network,
        trained.reference.profile,
        resolved,
        generator=torch.Generator(),
    )
    share = resolved.budget / resolved.dense_cost
    for layer in spec.layers:
        if layer.name in resolved.eligible:
            assert layer_cost(layer, "macs") <= share * dense_cost(layer, "macs")


def test_layers_too_small_for_their_share_get_the_smallest_member_and_the_others_pay() -> None:
    mixer = Mixer(patch=2, width=64, depth=1, token_hidden=32)
    resolved = resolve(tiny(model=mixer, budget={"ratio": 0.07}))
    members = even_members("blast", resolved.layers, resolved)
    structures = {name: sizes[0] for name, sizes in members.items()}
    assert network_cost(resolved.network.with_structures(structures), resolved).cost <= (
        resolved.budget
    )
    shares = {
        layer.name: layer_cost(
            layer.model_copy(update={"structure": structures[layer.name]}), "macs"
        )
        / dense_cost(layer, "macs")
        for layer in resolved.layers
    }
    small = {name for name, share in shares.items() if share > 0.07}
    assert small == {"blocks.0.token_up", "blocks.0.token_down"}


def test_a_family_whose_smallest_members_exceed_the_budget_says_so(trained: Trained) -> None:
    resolved = resolve(tiny(budget={"ratio": 0.1}))
    with pytest.raises(BudgetUnreachable, match=r"the smallest tensor train layers .* cost"):
        build_baseline(
            "tensor_train",
            trained.reference.network,
            trained.reference.profile,
            resolved,
            generator=torch.Generator(),
        )


def test_a_plain_svd_does_not_ask_what_the_inputs_are(trained: Trained) -> None:
    errors = {}
    for family in ("uniform_svd", "uniform_low_rank"):
        _, network = build_baseline(
            family,
            trained.reference.network,
            trained.reference.profile,
            trained.resolved,
            generator=torch.Generator(),
        )
        p = trained.reference.profile.layers[0]
        layer = network.get_submodule(p.layer.name)
        assert isinstance(layer, LowRankLinear)
        rest = (layer.to_dense() - p.weight).detach()
        errors[family] = [
            float(output_error(rest)),
            float(output_error(rest.double(), p.second_moment)),
        ]
    assert errors["uniform_svd"][0] < errors["uniform_low_rank"][0]
    assert errors["uniform_svd"][1] > errors["uniform_low_rank"][1]


def test_a_family_is_not_named_twice() -> None:
    with pytest.raises(ValidationError, match="names a family twice"):
        tiny(space={"baselines": ["block_diagonal", "block_diagonal"]})
