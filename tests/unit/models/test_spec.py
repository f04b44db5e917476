"""Specs of structures, layers and networks: what is refused, and with which words."""

from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
from pydantic import ValidationError

from models.spec import (
    Gpt,
    ImageTask,
    LayerSpec,
    Matrix,
    MatrixTask,
    Mixer,
    Mlp,
    Model,
    NetworkSpec,
    Task,
    TextTask,
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
    message = r"layer is 'blocks\.9\.up', but .* \('blocks\.\d\.up', perhaps\) 'embed', "
    with pytest.raises(ValueError, match=message):
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


def test_a_text_network_s_context_is_its_task_s() -> None:
    task = TextTask(vocabulary=5, context=12)
    assert {layer.tokens for layer in dense_network(Gpt(context=12), task).layers} == {12}
    with pytest.raises(ValueError, match="context is 13, but the task admits 12"):
        dense_network(Gpt(context=13), task)
    with pytest.raises(ValueError, match="heads is 3, but width 128 admits 1, 2, 4, 8"):
        Gpt(heads=3)
    with pytest.raises(ValueError, match="patch is 5, but height 28 and width 28 admit"):
        dense_network(Mixer(patch=5), IMAGES)


def test_what_mixes_tokens_is_used_once_for_each_channel() -> None:
    layers = {layer.name: layer for layer in dense_network(Mixer(width=24), IMAGES).layers}
    assert (layers["blocks.0.token_up"].rows, layers["blocks.0.token_up"].columns) == (64, 49)
    assert layers["blocks.0.token_up"].tokens == layers["blocks.0.token_down"].tokens == 24
    assert layers["blocks.0.up"].tokens == layers["embed"].tokens == 49


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (Mlp(), IMAGES),
        (Vit(), IMAGES),
        (Mixer(), IMAGES),
        (Gpt(), TextTask(vocabulary=96, context=128)),
        (Matrix(artifact="some"), MatrixTask(rows=2, columns=2)),
    ],
)
def test_default_patterns_leave_out_embedding_and_head_alone(model: Model, task: Task) -> None:
    (pattern,) = default_layers(model)
    names = [layer.name for layer in dense_network(model, task).layers]
    left_out = {name for name in names if not fnmatchcase(name, pattern)}
    assert left_out <= {"embed", "head"}
    assert len(left_out) < len(names)


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
        (lambda value: Mixer(token_hidden=value), 65_536),
        (lambda value: Gpt(context=value), 65_536),
    ],
)
def test_a_network_has_a_ceiling_and_its_refusal_names_it(
    model: Callable[[int], Mlp | Vit | Mixer | Gpt], largest: int
) -> None:
    model(largest)
    with pytest.raises(ValidationError, match=rf"at most {largest} items|equal to {largest}\b"):
        model(largest + 1)
