"""What a task, a layer and a network are: frozen data, no tensor, no torch."""

from itertools import pairwise
from typing import Annotated, Literal, assert_never

from pydantic import Field, PositiveInt, model_validator

from models.frozen import Spec
from models.structures import Dense, Structure
from models.structures.base import check_choice, check_divides

# Far above what can be trained, and low enough that the arithmetic over an absurd spec is quick: it
# is refused by the request, not by a worker that runs out of memory.
Width = Annotated[int, Field(gt=0, le=65_536)]
Depth = Annotated[int, Field(gt=0, le=1024)]
Heads = Annotated[int, Field(gt=0, le=1024)]
Patch = Annotated[int, Field(gt=0, le=1024)]
Expansion = Annotated[int, Field(gt=0, le=64)]
Context = Annotated[int, Field(gt=0, le=65_536)]


class Mlp(Spec):
    """A multilayer perceptron with ReLU between its layers."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)] = (512, 512)


class Vit(Spec):
    """A pre-norm vision transformer, mean-pooled, with learned positions."""

    kind: Literal["vit"] = "vit"
    patch: Patch = 7
    width: Width = 128
    depth: Depth = 4
    heads: Heads = 4
    expansion: Expansion = 4

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Vit":
        check_divides("heads", self.heads, width=self.width)
        return self


class Mixer(Spec):
    """An MLP-Mixer: perceptrons over the patches, `token_hidden` wide, and over the channels."""

    kind: Literal["mixer"] = "mixer"
    patch: Patch = 4
    width: Width = 128
    depth: Depth = 6
    token_hidden: Width = 64
    expansion: Expansion = 4


class Gpt(Spec):
    """A decoder-only, pre-norm transformer over characters, which sees `context` of them."""

    kind: Literal["gpt"] = "gpt"
    context: Context = 128
    width: Width = 128
    depth: Depth = 4
    heads: Heads = 4
    expansion: Expansion = 4

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Gpt":
        check_divides("heads", self.heads, width=self.width)
        return self


class Matrix(Spec):
    """One uploaded matrix as the network: y = W x, and the search finds the structure of W."""

    kind: Literal["matrix"] = "matrix"
    artifact: Annotated[str, Field(min_length=1)]


Model = Annotated[Mlp | Vit | Mixer | Gpt | Matrix, Field(discriminator="kind")]


class ImageTask(Spec):
    """Images in, one of `classes` out."""

    kind: Literal["image"] = "image"
    channels: PositiveInt
    height: PositiveInt
    width: PositiveInt
    classes: PositiveInt


class TextTask(Spec):
    """The next character, of `vocabulary`, after each of up to `context` characters."""

    kind: Literal["text"] = "text"
    vocabulary: PositiveInt
    context: PositiveInt


class MatrixTask(Spec):
    """A matrix to be approximated."""

    kind: Literal["matrix"] = "matrix"
    rows: PositiveInt
    columns: PositiveInt


Task = Annotated[ImageTask | TextTask | MatrixTask, Field(discriminator="kind")]


class LayerSpec(Spec):
    """One linear layer: its place, its shape, how often one sample uses it, its structure."""

    name: str
    rows: PositiveInt
    columns: PositiveInt
    tokens: PositiveInt = 1
    bias: bool = True
    structure: Structure = Dense()

    @model_validator(mode="after")
    def _structure_fits(self) -> "LayerSpec":
        self.structure.check_fits(rows=self.rows, columns=self.columns)
        return self


class NetworkSpec(Spec):
    """A whole network: its model, its task and the structure of every linear layer."""

    model: Model
    task: Task
    layers: tuple[LayerSpec, ...]

    def with_structures(self, structures: dict[str, Structure]) -> "NetworkSpec":
        """The same network with the named layers' structures exchanged."""
        names = [layer.name for layer in self.layers]
        for name in structures:
            check_choice("layer", name, names)
        layers = tuple(
            LayerSpec(
                name=layer.name,
                rows=layer.rows,
                columns=layer.columns,
                tokens=layer.tokens,
                bias=layer.bias,
                structure=structures.get(layer.name, layer.structure),
            )
            for layer in self.layers
        )
        return NetworkSpec(model=self.model, task=self.task, layers=layers)


def dense_network(model: Model, task: Task) -> NetworkSpec:
    """The layer table of a built-in network, by arithmetic; ValueError where the two do not fit."""
    match model, task:
        case Mlp(), ImageTask():
            layers = _mlp_layers(model, task)
        case Vit(), ImageTask():
            layers = _vit_layers(model, task)
        case Mixer(), ImageTask():
            layers = _mixer_layers(model, task)
        case Gpt(), TextTask():
            layers = _gpt_layers(model, task)
        case Matrix(), MatrixTask():
            layers = [
                LayerSpec(name="matrix", rows=task.rows, columns=task.columns, bias=False),
            ]
        case _:
            raise ValueError(f"a {model.kind} network cannot learn a task of kind {task.kind}")
    return NetworkSpec(model=model, task=task, layers=tuple(layers))


def default_layers(model: Model) -> tuple[str, ...]:
    """Patterns of the layers searched unless a spec says otherwise: all but embedding and head."""
    match model:
        case Mlp():
            return ("layers.*",)
        case Vit() | Mixer() | Gpt():
            return ("blocks.*",)
        case Matrix():
            return ("matrix",)
        case _:
            assert_never(model)


def _mlp_layers(model: Mlp, task: ImageTask) -> list[LayerSpec]:
    widths = (task.channels * task.height * task.width, *model.hidden)
    layers = [
        LayerSpec(name=f"layers.{index}", rows=rows, columns=columns)
        for index, (columns, rows) in enumerate(pairwise(widths))
    ]
    return [*layers, LayerSpec(name="head", rows=task.classes, columns=widths[-1])]


def _vit_layers(model: Vit, task: ImageTask) -> list[LayerSpec]:
    embed = _patch_embedding(model, task)
    blocks = _transformer_layers(model, tokens=embed.tokens)
    return [embed, *blocks, LayerSpec(name="head", rows=task.classes, columns=model.width)]


def _mixer_layers(model: Mixer, task: ImageTask) -> list[LayerSpec]:
    embed = _patch_embedding(model, task)
    tokens, width = embed.tokens, model.width
    hidden, wide = model.token_hidden, model.width * model.expansion
    shapes = (
        # The perceptron over the patches is used once for each channel.
        ("token_up", hidden, tokens, width),
        ("token_down", tokens, hidden, width),
        ("up", wide, width, tokens),
        ("down", width, wide, tokens),
    )
    layers = [
        LayerSpec(name=f"blocks.{block}.{name}", rows=rows, columns=columns, tokens=uses)
        for block in range(model.depth)
        for name, rows, columns, uses in shapes
    ]
    return [embed, *layers, LayerSpec(name="head", rows=task.classes, columns=width)]


def _gpt_layers(model: Gpt, task: TextTask) -> list[LayerSpec]:
    """All but the table of the characters, which is looked up and never multiplied."""
    if model.context != task.context:
        raise ValueError(f"context is {model.context}, but the task admits {task.context}")
    tokens, width = task.context, model.width
    head = LayerSpec(name="head", rows=task.vocabulary, columns=width, tokens=tokens)
    return [*_transformer_layers(model, tokens=tokens), head]


def _patch_embedding(model: Vit | Mixer, task: ImageTask) -> LayerSpec:
    check_divides("patch", model.patch, height=task.height, width=task.width)
    tokens = (task.height // model.patch) * (task.width // model.patch)
    pixels = task.channels * model.patch**2
    return LayerSpec(name="embed", rows=model.width, columns=pixels, tokens=tokens)


def _transformer_layers(model: Vit | Gpt, *, tokens: int) -> list[LayerSpec]:
    width, wide = model.width, model.width * model.expansion
    shapes = (
        ("qkv", 3 * width, width),
        ("proj", width, width),
        ("up", wide, width),
        ("down", width, wide),
    )
    return [
        LayerSpec(name=f"blocks.{block}.{name}", rows=rows, columns=columns, tokens=tokens)
        for block in range(model.depth)
        for name, rows, columns in shapes
    ]
