"""Specs of structures, layers and networks: what is refused, and with which words."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from models.spec import (
    ImageTask,
    LayerSpec,
    Matrix,
    MatrixTask,
    Mlp,
    NetworkSpec,
    Vit,
    default_layers,
    dense_network,
)
from models.structures import BlockDiagonal, Gblr, LowRank, Rectangle, Structure

IMAGES = ImageTask(channels=1, height=28, width=28, classes=10)
FITTING = {"row_start": 3, "row_count": 4, "column_start": 5, "column_count": 6, "rank": 2}


@pytest.mark.parametrize(
    ("structure", "sentence"),
    [
        (LowRank(rank=9), "rank is 9, but a 8 x 10 matrix admits 1 to 8"),
        (BlockDiagonal(blocks=11), "blocks is 11, but a 8 x 10 matrix admits 1 to 8"),
    ],
)
def test_a_structure_too_large_is_refused_with_its_range(
    structure: Structure, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        LayerSpec(name="some", rows=8, columns=10, structure=structure)


@pytest.mark.parametrize(
    ("name", "value", "low", "high"),
    [
        ("row_start", 8, 0, 7),
        ("row_count", 9, 1, 8),
        ("column_start", 10, 0, 9),
        ("column_count", 11, 1, 10),
        ("rank", 5, 1, 4),
    ],
)
def test_a_rectangle_that_does_not_fit_is_refused_with_its_range(
    name: str, value: int, low: int, high: int
) -> None:
    structure = Gblr(rectangles=(Rectangle.model_validate(FITTING | {name: value}),))
    with pytest.raises(ValueError, match=rf"{name} is {value}, but .* admits {low} to {high}"):
        structure.check_fits(rows=8, columns=10)


def test_a_rectangle_is_a_tile_where_factors_would_be_no_smaller() -> None:
    factored = Rectangle.model_validate(FITTING)
    tile = factored.model_copy(update={"rank": 3})
    assert (factored.is_tile, factored.size) == (False, 20)
    assert (tile.is_tile, tile.size) == (True, 24)
    assert Gblr(rectangles=(factored, tile)).parameter_count(rows=8, columns=10) == 44


def test_networks_survive_json() -> None:
    network = dense_network(Vit(), IMAGES).with_structures({"blocks.1.up": LowRank(rank=7)})
    assert NetworkSpec.model_validate_json(network.model_dump_json()) == network


def test_unknown_layers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no layer is called \['blocks.9.up'\]"):
        dense_network(Vit(), IMAGES).with_structures({"blocks.9.up": LowRank(rank=7)})


def test_patches_and_heads_must_divide() -> None:
    with pytest.raises(
        ValueError, match="patch is 5, but height 28 and width 28 admit 1, 2, 4, 7, 14, 28"
    ):
        dense_network(Vit(patch=5), IMAGES)
    with pytest.raises(
        ValidationError, match="heads is 3, but width 128 admits 1, 2, 4, 8, 16, 32, 64, 128"
    ):
        Vit(heads=3)


def test_a_model_refuses_another_kind_of_task() -> None:
    with pytest.raises(ValueError, match="a matrix network cannot learn a task of kind image"):
        dense_network(Matrix(artifact="some"), IMAGES)
    with pytest.raises(ValueError, match="a mlp network cannot learn a task of kind matrix"):
        dense_network(Mlp(), MatrixTask(rows=2, columns=2))


@pytest.mark.parametrize("model", [Mlp(), Vit(), Matrix(artifact="some")])
def test_default_patterns_name_parts_of_the_network(model: Mlp | Vit | Matrix) -> None:
    (pattern,) = default_layers(model)
    task = MatrixTask(rows=2, columns=2) if isinstance(model, Matrix) else IMAGES
    names = [layer.name for layer in dense_network(model, task).layers]
    assert any(name.startswith(pattern.removesuffix("*")) for name in names)


@pytest.mark.parametrize(
    ("model", "largest"),
    [
        (lambda value: Mlp(hidden=(16, value)), 65_536),
        (lambda value: Mlp(hidden=(16,) * value), 64),
        (lambda value: Vit(width=value), 65_536),
        (lambda value: Vit(depth=value), 1024),
        (lambda value: Vit(patch=value), 1024),
        (lambda value: Vit(width=8 * value, heads=value), 1024),
        (lambda value: Vit(expansion=value), 64),
    ],
)
def test_a_network_has_a_ceiling_and_its_refusal_names_it(
    model: Callable[[int], Mlp | Vit], largest: int
) -> None:
    model(largest)
    with pytest.raises(ValidationError, match=rf"at most {largest} items|equal to {largest}\b"):
        model(largest + 1)
