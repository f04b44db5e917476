"""What only diagonals and free entries do."""

from itertools import pairwise

import pytest
import torch

from models.structured.build import project
from models.structured.diagonals_choice import choose, error_curve
from models.structured.output_error import output_error
from models.structures import Diagonals


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def planted(rows: int, columns: int) -> tuple[torch.Tensor, Diagonals]:
    """Three diagonals and two entries that stand out of noise."""
    structure = Diagonals(offsets=(-2, 0, 5), entries=((1, 9), (7, 2)))
    shown = project(torch.ones(rows, columns).double(), structure).to_dense().detach()
    return 0.01 * normal(rows, columns) + shown * (
        2 + normal(rows, columns, seed=1).abs()
    ), structure


def test_planted_diagonals_and_entries_are_found() -> None:
    weight, structure = planted(17, 13)
    assert choose(weight, diagonals=3, entries=2) == structure


def test_a_second_difference_is_tridiagonal() -> None:
    weight = torch.diag(torch.full((9,), 2.0))
    weight += torch.diag(torch.full((8,), -1.0), 1) + torch.diag(torch.full((8,), -1.0), -1)
    curve = error_curve(weight.double())
    assert curve.structure(2) == Diagonals(offsets=(-1, 0, 1))
    assert curve.parameters[2] == 9 + 8 + 8
    assert curve.errors[2] == 0


def test_outputs_decide_which_diagonals_count() -> None:
    """Inputs that are never there need no numbers, however large the weights upon them."""
    weight = torch.zeros(4, 8).double()
    weight.diagonal(4).fill_(9.0)
    weight.diagonal(0).fill_(1.0)
    moment = torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4)).double()
    assert choose(weight, diagonals=1) == Diagonals(offsets=(4,))
    assert choose(weight, moment, diagonals=1) == Diagonals(offsets=(0,))


def test_given_correlated_inputs_numbers_stand_in_for_what_is_cut() -> None:
    inputs = normal(50, 12) @ normal(12, 12, seed=1)
    moment = inputs.T @ inputs / 50
    weight, structure = normal(10, 12, seed=2), Diagonals(offsets=(0, 1, 2), entries=((9, 0),))
    plain = project(weight, structure).to_dense()
    aware = project(weight, structure, second_moment=moment).to_dense()
    assert output_error(weight - aware, moment) < 0.8 * output_error(weight - plain, moment)
    # The least-squares solution leaves an error that no number of its row can lower.
    gradient = ((weight - aware) @ moment)[aware != 0]
    assert gradient.abs().max() < 1e-5


def test_every_size_of_a_curve_holds_the_smaller_ones() -> None:
    weight = normal(11, 7)
    for rest in (0.0, 1.0):
        curve = error_curve(weight, rest=rest)
        found = [curve.structure(index) for index in range(len(curve.errors))]
        masks = [project(torch.ones(11, 7), one).to_dense() != 0 for one in found]
        for smaller, larger in pairwise(masks):
            assert (larger | ~smaller).all()
        assert masks[-1].all()
        assert curve.errors.diff().le(0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offsets": (1, 0)}, "sorted"),
        ({"offsets": (0, 0)}, "different"),
        ({"offsets": (), "entries": ((1, 0), (0, 0))}, "sorted"),
        ({"offsets": ()}, "both empty"),
        ({"offsets": (1,), "entries": ((2, 3),)}, "that is on the diagonal 1"),
    ],
)
def test_numbers_that_are_not_each_free_are_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Diagonals.model_validate(fields)


def test_the_words_count_what_is_there() -> None:
    assert Diagonals(offsets=(0,)).in_words() == "1 diagonal"
    found = Diagonals(offsets=(-1, 0), entries=((0, 3),))
    assert found.in_words() == "2 diagonals, 1 free entry"


def test_the_next_size_is_found_at_once_in_a_huge_matrix() -> None:
    """Not by a search through all positions, of which all but the last diagonal are taken."""
    nearly = Diagonals(offsets=tuple(range(1, 65_536)), entries=((65_535, 0),))
    found = list(nearly.larger(rows=65_536, columns=65_536))
    size = nearly.parameter_count(rows=65_536, columns=65_536)
    grown = [one.parameter_count(rows=65_536, columns=65_536) - size for one in found]
    assert grown == [1, 65_536]
