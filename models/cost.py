"""What a structure and a network cost, by arithmetic alone: no tensor is allocated to count it.

MACs are multiply-accumulates. A structure's are for one input vector, a layer's and a network's
for one sample (a layer is used once for each of its tokens).
"""

from collections.abc import Mapping
from typing import Literal, assert_never

from models.spec import (
    BlockDiagonal,
    Dense,
    Gblr,
    ImageTask,
    LayerSpec,
    LowRank,
    Matrix,
    Mlp,
    NetworkSpec,
    Rectangle,
    Structure,
    Vit,
)

Quantity = Literal["macs", "parameters"]
UNITS: Mapping[Quantity, str] = {"macs": "MACs", "parameters": "parameters"}


def structure_size(structure: Structure, *, rows: int, columns: int) -> int:
    """Numbers stored, which for every structure here are also the MACs for one input vector."""
    match structure:
        case Dense():
            return rows * columns
        case LowRank(rank=rank):
            return rank * (rows + columns)
        case BlockDiagonal(blocks=blocks):
            return blocks * -(-rows // blocks) * -(-columns // blocks)
        case Gblr(rectangles=rectangles):
            return sum(rectangle_size(rectangle) for rectangle in rectangles)
        case _:
            assert_never(structure)


def rectangle_size(rectangle: Rectangle) -> int:
    """The two factors, or the dense tile where that is no larger."""
    area = rectangle.row_count * rectangle.column_count
    return min(area, rectangle.rank * (rectangle.row_count + rectangle.column_count))


def layer_weight(layer: LayerSpec, quantity: Quantity) -> int:
    """How much of `quantity` each number of the layer's matrix costs for one sample."""
    match quantity:
        case "macs":
            return layer.tokens
        case "parameters":
            return 1
        case _:
            assert_never(quantity)


def layer_cost(layer: LayerSpec, quantity: Quantity) -> int:
    """MACs for one sample, or parameters, of the layer's matrix (its bias is not counted)."""
    size = structure_size(layer.structure, rows=layer.rows, columns=layer.columns)
    return layer_weight(layer, quantity) * size


def dense_cost(layer: LayerSpec, quantity: Quantity) -> int:
    """What the same layer would cost dense."""
    return layer_weight(layer, quantity) * layer.rows * layer.columns


def smallest_step(layer: LayerSpec, quantity: Quantity) -> int | None:
    """Return the least that could be added to the layer within its structure; None if nothing can.

    One more rank, the next smaller number of blocks, or one more row or column in a rectangle.
    """
    rows, columns, structure = layer.rows, layer.columns, layer.structure
    size = structure_size(structure, rows=rows, columns=columns)
    larger: list[Structure] = []
    match structure:
        case Dense():
            pass
        case LowRank(rank=rank):
            larger = [LowRank(rank=rank + 1)] if rank < min(rows, columns) else []
        case BlockDiagonal(blocks=blocks):
            larger = [BlockDiagonal(blocks=fewer) for fewer in range(1, blocks)]
        case Gblr(rectangles=rectangles):
            steps = [
                rectangle_size(grown) - rectangle_size(rectangle)
                for rectangle in rectangles
                for grown in _grown(rectangle, rows=rows, columns=columns)
            ]
            return _least(steps, layer_weight(layer, quantity))
        case _:
            assert_never(structure)
    steps = [structure_size(more, rows=rows, columns=columns) - size for more in larger]
    return _least(steps, layer_weight(layer, quantity))


def _least(steps: list[int], weight: int) -> int | None:
    possible = [step for step in steps if step > 0]
    return weight * min(possible) if possible else None


def _grown(rectangle: Rectangle, *, rows: int, columns: int) -> list[Rectangle]:
    """List the rectangles that are one row or one column larger."""
    grown = []
    if rectangle.row_count < rows:
        grown.append(rectangle.model_copy(update={"row_count": rectangle.row_count + 1}))
    if rectangle.column_count < columns:
        grown.append(rectangle.model_copy(update={"column_count": rectangle.column_count + 1}))
    return grown


def network_macs(network: NetworkSpec) -> int:
    """MACs of one sample through the whole network: linear layers and attention products."""
    linear = sum(layer_cost(layer, "macs") for layer in network.layers)
    match network.model, network.task:
        case Vit(depth=depth, width=width, patch=patch), ImageTask() as task:
            tokens = (task.height // patch) * (task.width // patch)
            return linear + depth * 2 * tokens * tokens * width
        case _:
            return linear


def network_parameters(network: NetworkSpec) -> int:
    """Every trainable number: matrices, biases, positions and normalisation."""
    matrices = sum(layer_cost(layer, "parameters") for layer in network.layers)
    biases = sum(layer.rows for layer in network.layers if layer.bias)
    match network.model:
        case Mlp() | Matrix():
            return matrices + biases
        case Vit(depth=depth, width=width):
            tokens = network.layers[0].tokens
            norms = (2 * depth + 1) * 2 * width
            return matrices + biases + tokens * width + norms
        case _:
            assert_never(network.model)
