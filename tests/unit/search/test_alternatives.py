"""Alternatives beside low-rank terms, and the best structure of a single matrix."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.cost import layer_cost
from models.structured.build import build_layer
from models.structured.low_rank import decompose
from models.structures import BlockDiagonal, Btt, Diagonals, Kronecker, LowRank, Structure, Sum
from search.alternatives import allocate_mixtures, alternated
from search.plan import planned_trials
from search.progress import Silent
from search.run import SearchResult, run_search
from search.sampling import TURNS, propose
from search.spec import LearnerSettings, StructuresName
from search.starts import starts
from tests.unit.search.builders import finished, matrix_spec, tiny, upload
from tests.unit.search.conftest import Trained

SIDE = 32
BLOCKS_AND_RANK = Sum(parts=(LowRank(rank=1), BlockDiagonal(blocks=4)))


@torch.no_grad()
def member(structure: Structure) -> Tensor:
    noise = torch.Generator().manual_seed(2)
    layer = build_layer(structure, rows=SIDE, columns=SIDE, bias=False, generator=noise)
    return layer.to_dense()


def searched(folder: Path, weight: Tensor, macs: int, way: StructuresName) -> SearchResult:
    upload(folder, weight)
    spec = matrix_spec(
        budget={"absolute": macs},
        compute={"trials": 1, "epochs": 2},
        space={"baselines": [], "learner": {"structures": way}},
    )
    return run_search(spec, folder=folder, uploads=folder, threads=1)


def test_turns_find_what_neither_the_blocks_nor_the_terms_express_alone() -> None:
    weight = member(BLOCKS_AND_RANK).double()
    pair = alternated(
        "block diagonal", weight, None, macs=SIDE**2 // 4, rank=1, decomposed=decompose
    )
    assert pair is not None
    blocks, terms = pair
    assert blocks.spec == BlockDiagonal(blocks=4)
    left = terms.energies[1:].sum() / weight.square().sum()
    alone = decompose(weight).energies[5:].sum() / weight.square().sum()
    assert left < 0.5 * alone


@pytest.mark.parametrize(
    "structure",
    [
        LowRank(rank=3),
        BlockDiagonal(blocks=4),
        Btt(input_blocks=4, output_blocks=4, rank=2),
        Kronecker(terms=2, block_rows=4, block_columns=4),
        Diagonals(offsets=(-1, 0, 1)),
        BLOCKS_AND_RANK,
    ],
    ids=lambda structure: structure.kind,
)
def test_the_menu_finds_what_was_planted(tmp_path: Path, structure: Structure) -> None:
    macs = structure.mac_count(rows=SIDE, columns=SIDE)
    result = searched(tmp_path, member(structure), macs, "menu")
    outcome = result.outcomes[1]
    assert outcome.metrics is not None
    assert outcome.metrics["validation_loss"] < 1e-3
    assert outcome.metrics["cost"] <= macs


def test_beside_an_alternative_a_budget_is_held_and_the_sum_is_one_structure(
    tmp_path: Path,
) -> None:
    macs = int(1.1 * BLOCKS_AND_RANK.mac_count(rows=SIDE, columns=SIDE))
    result = searched(tmp_path, member(BLOCKS_AND_RANK), macs, "competing")
    outcome = result.outcomes[1]
    assert outcome.network is not None
    assert outcome.metrics is not None
    (layer,) = outcome.network.layers
    assert isinstance(layer.structure, Sum)
    assert layer_cost(layer, "macs") <= macs
    assert abs(outcome.metrics["hardening_gap"]) < 1e-5
    alone = searched(tmp_path / "alone", member(BLOCKS_AND_RANK), macs, "rectangles").outcomes[1]
    assert alone.metrics is not None
    assert outcome.metrics["validation_loss"] < alone.metrics["validation_loss"]


def test_a_matrix_tries_the_menu_first_and_then_what_is_learned() -> None:
    spec = matrix_spec(compute={"trials": 4}, space={"baselines": []})
    candidates = [t for t in planned_trials(spec) if t.kind == "candidate"]
    history = [finished(number) for number in range(1, 5)]
    proposed = [propose(spec, trial, history) for trial in candidates]
    assert [one.structures for one in proposed if one] == [*TURNS, TURNS[0]]


def test_a_network_learns_rectangles_unless_it_is_asked_for_more() -> None:
    plain = tiny(space={"baselines": []})
    asked = tiny(space={"baselines": [], "learner": {"structures": "competing"}})
    for spec, expected in ((plain, "rectangles"), (asked, "competing")):
        (first, *_) = (t for t in planned_trials(spec) if t.kind == "candidate")
        settings = propose(spec, first, [])
        assert settings is not None
        assert settings.structures == expected


@pytest.mark.parametrize("excess", [1.0, 1.5])
def test_alternatives_leave_room_within_the_budget_and_ranks_take_the_rest(
    trained: Trained, excess: float
) -> None:
    resolved, measured = trained.resolved, trained.reference.profile
    cost = int(excess * resolved.budget)
    found = allocate_mixtures(measured, resolved, cost, "answer", Silent())
    sides = [layer.rows + layer.columns for layer in resolved.layers]
    beside = sum(start.mixture.size for start in found)
    terms = sum(start.rank * each for start, each in zip(found, sides, strict=True))
    assert beside <= resolved.budget
    assert beside + terms <= cost
    assert all(start.rank or start.mixture.alternative for start in found)


def test_where_only_rectangles_compete_the_start_is_the_allocated_ranks(trained: Trained) -> None:
    settings = LearnerSettings(structures="rectangles")
    found = starts(trained.reference.profile, trained.resolved, settings)
    assert all(start.mixture.alternative is None and start.rank for start in found)
