"""What a layer and a network cost, by arithmetic alone: no tensor is allocated to count it.

MACs are multiply-accumulates. A structure's are for one input vector, a layer's and a network's
for one sample (a layer is used once for each of its tokens).
"""

from collections.abc import Mapping
from typing import Literal, assert_never, get_args

from models.spec import Gpt, LayerSpec, Matrix, Mixer, Mlp, NetworkSpec, Vit
from models.structures import Dense
from models.structures.base import StructureSpec, check_choice

Counted = Literal["macs", "parameters"]
COUNTED: tuple[Counted, ...] = get_args(Counted)
Quantity = Literal[Counted, "latency"]  # which no arithmetic knows: it is measured
UNITS: Mapping[Quantity, str] = {
    "macs": "MACs",
    "parameters": "parameters",
    "latency": "latency",
}


def layer_weight(layer: LayerSpec, quantity: Counted) -> int:
    """How much of `quantity` each number of a matrix that is used whole costs for one sample."""
    check_choice("quantity", quantity, COUNTED)
    match quantity:
        case "macs":
            return layer.tokens
        case "parameters":
            return 1
        case _:
            assert_never(quantity)


def layer_cost(layer: LayerSpec, quantity: Counted) -> int:
    """MACs for one sample, or parameters, of the layer's matrix (its bias is not counted)."""
    return _cost(layer, layer.structure, quantity)


def dense_cost(layer: LayerSpec, quantity: Counted) -> int:
    """What the same layer would cost dense."""
    return _cost(layer, Dense(), quantity)


def smallest_step(layer: LayerSpec, quantity: Counted) -> int | None:
    """Return the least that could be added to the layer within its structure; None if nothing can.

    One more rank, the next smaller number of blocks, or one more row or column in a rectangle.
    """
    now = layer_cost(layer, quantity)
    larger = layer.structure.larger(rows=layer.rows, columns=layer.columns)
    steps = (_cost(layer, structure, quantity) - now for structure in larger)
    return min((step for step in steps if step > 0), default=None)


def _cost(layer: LayerSpec, structure: StructureSpec, quantity: Counted) -> int:
    check_choice("quantity", quantity, COUNTED)
    match quantity:
        case "macs":
            return layer.tokens * structure.mac_count(rows=layer.rows, columns=layer.columns)
        case "parameters":
            return structure.parameter_count(rows=layer.rows, columns=layer.columns)
        case _:
            assert_never(quantity)


def network_macs(network: NetworkSpec) -> int:
    """MACs of one sample through the whole network: linear layers and attention products.

    A causal mask saves no products here: they are counted whole, as they are where it is added.
    """
    linear = sum(layer_cost(layer, "macs") for layer in network.layers)
    match network.model:
        case Vit(depth=depth, width=width) | Gpt(depth=depth, width=width):
            tokens = network.layers[0].tokens
            return linear + depth * 2 * tokens * tokens * width
        case Mlp() | Mixer() | Matrix():
            return linear
        case _:
            assert_never(network.model)


def network_parameters(network: NetworkSpec) -> int:
    """Every trainable number: matrices, biases, positions, characters and normalisation."""
    matrices = sum(layer_cost(layer, "parameters") for layer in network.layers)
    biases = sum(layer.rows for layer in network.layers if layer.bias)
    match network.model:
        case Mlp() | Matrix():
            return matrices + biases
        case Mixer(depth=depth, width=width):
            return matrices + biases + _norms(depth, width)
        case Vit(depth=depth, width=width):
            tokens = network.layers[0].tokens
            return matrices + biases + tokens * width + _norms(depth, width)
        case Gpt(depth=depth, width=width, context=context):
            vocabulary = network.layers[-1].rows
            table = (context + vocabulary) * width
            return matrices + biases + table + _norms(depth, width)
        case _:
            assert_never(network.model)


def _norms(depth: int, width: int) -> int:
    """Two in every block and one after them, each with gains and offsets."""
    return (2 * depth + 1) * 2 * width
