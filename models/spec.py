"""What a task, a layer and a network are: frozen data, no tensor, no torch."""

from itertools import pairwise
from typing import Annotated, Literal, assert_never

from pydantic import Field, PositiveInt, model_validator

from models.frozen import Spec
from models.structures import Dense, Structure
from models.structures.base import check_divides

# Far above what can be trained, and low enough that the arithmetic over an absurd spec is quick: it
# is refused by the request, not by a worker that runs out of memory.
Width = Annotated[int, Field(gt=0, le=65_536)]
Depth = Annotated[int, Field(gt=0, le=1024)]
Heads = Annotated[int, Field(gt=0, le=1024)]
Patch = Annotated[int, Field(gt=0, le=1024)]
Expansion = Annotated[int, Field(gt=0, le=64)]


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


class Matrix(Spec):
    """One uploaded matrix as the network: y = W x, and the search finds the structure of W."""

    kind: Literal["matrix"] = "matrix"
    artifact: Annotated[str, Field(min_length=1)]


Model = Annotated[Mlp | Vit | Matrix, Field(discriminator="kind")]


class ImageTask(Spec):
    """Images in, one of `classes` out."""

    kind: Literal["image"] = "image"
    channels: PositiveInt
    height: PositiveInt
    width: PositiveInt
    classes: PositiveInt


class MatrixTask(Spec):
    """A matrix to be approximated."""

    kind: Literal["matrix"] = "matrix"
    rows: PositiveInt
    columns: PositiveInt


Task = Annotated[ImageTask | MatrixTask, Field(discriminator="kind")]


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
        unknown = structures.keys() - {layer.name for layer in self.layers}
        if unknown:
            raise ValueError(f"no layer is called {sorted(unknown)}")
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
        case Vit():
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
    check_divides("patch", model.patch, height=task.height, width=task.width)
    tokens = (task.height // model.patch) * (task.width // model.patch)
    width, wide = model.width, model.width * model.expansion
    layers = [
        LayerSpec(name="embed", rows=width, columns=task.channels * model.patch**2, tokens=tokens)
    ]
    shapes = (("qkv", 3 * width, width), ("proj", width, width), ("up", wide, width))
    for block in range(model.depth):
        layers += [
            LayerSpec(name=f"blocks.{block}.{name}", rows=rows, columns=columns, tokens=tokens)
            for name, rows, columns in (*shapes, ("down", width, wide))
        ]
    return [*layers, LayerSpec(name="head", rows=task.classes, columns=width)]
