"""What a structure and a network cost, by arithmetic alone: no tensor is allocated to count it.

MACs are multiply-accumulates. A structure's are for one input vector, a layer's and a network's
for one sample (a layer is used once for each of its tokens).
"""

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
