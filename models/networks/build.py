"""From a network's spec to its module, whose layers lie under the names in its table."""

from functools import partial
from typing import assert_never

import torch
from torch import nn

from models.networks.factory import Linear
from models.networks.gpt import GptNetwork
from models.networks.matrix import MatrixNetwork
from models.networks.mixer import MixerNetwork
from models.networks.mlp import MlpNetwork
from models.networks.vit import VitNetwork
from models.spec import (
    Gpt,
    LayerSpec,
    Matrix,
    Mixer,
    Mlp,
    NetworkSpec,
    TextTask,
    Vit,
    dense_network,
)
from models.structured import StructuredLinear
from models.structured.build import empty_layer, layer_of
from models.structured.checks import check_generator, check_module, shape_in_words
from models.structured.trainable import outermost_layers
from models.structures import Dense, Structure


def build_network(
    spec: NetworkSpec, *, generator: torch.Generator, linear: Linear | None = None
) -> nn.Module:
    """The network, initialised from scratch; `linear` makes each layer, the table's by default.

    Raises ValueError for a table that is not the model's.
    """
    check_generator(generator)
    dense: dict[str, Structure] = {layer.name: Dense() for layer in spec.layers}
    if spec.with_structures(dense) != dense_network(spec.model, spec.task):
        raise ValueError(f"the layers are not those of a {spec.model.kind} network for this task")
    make = linear or partial(layer_of, generator=generator)
    match spec.model:
        case Mlp():
            return MlpNetwork(spec, make)
        case Vit():
            return VitNetwork(spec, spec.model, make, generator)
        case Mixer():
            return MixerNetwork(spec, spec.model, make)
        case Gpt():
            assert isinstance(spec.task, TextTask)  # or the table above would not be the model's
            return GptNetwork(spec, spec.model, spec.task, make, generator)
        case Matrix():
            return MatrixNetwork(spec, make)
        case _:
            assert_never(spec.model)


def check_network(network: nn.Module, spec: NetworkSpec) -> None:
    """Raise ValueError where a network is not the one that a spec asks for, tensor by tensor."""
    check_table(network, spec)
    # Empty layers: nothing is drawn that takes its time.
    asked = build_network(spec, generator=torch.Generator(), linear=_empty_layer_of).state_dict()
    own = network.state_dict()
    for name, tensor in asked.items():
        shape = shape_in_words(tensor)
        if name not in own:
            raise ValueError(f"spec has a tensor {name}, {shape}, but the network has none")
        if own[name].shape != tensor.shape:
            words = f"{name} of the network is {shape_in_words(own[name])}"
            raise ValueError(f"{words}, but in spec {shape}")
    for name in own.keys() - asked.keys():
        raise ValueError(f"the network has a tensor {name}, but spec has none")
    first: dict[int, str] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(value), name)
        if other != name:
            words = f"{other} and {name} of the network are one tensor"
            raise ValueError(f"{words}, but spec has two, which would part")


def _empty_layer_of(layer: LayerSpec) -> StructuredLinear:
    return empty_layer(layer.structure, rows=layer.rows, columns=layer.columns, bias=layer.bias)


def check_table(network: nn.Module, spec: NetworkSpec) -> None:
    """Raise ValueError where a network's structured layers are not those of a spec's table."""
    check_module("network", network)
    if not isinstance(spec, NetworkSpec):
        kind = type(spec).__name__
        raise TypeError(f"spec is a {kind}, but a network admits the NetworkSpec of its layers")
    table = {layer.name: layer for layer in spec.layers}
    for name, module in outermost_layers(network):
        if not isinstance(module, StructuredLinear):
            continue
        own = f"{name} of the network is {module.rows} x {module.columns}, {module.spec.in_words()}"
        layer = table.get(name)
        if layer is None:
            raise ValueError(f"{own}, but spec has no layer of that name")
        shape = (layer.rows, layer.columns)
        if (module.rows, module.columns) != shape or module.spec != layer.structure:
            words = layer.structure.in_words()
            raise ValueError(f"{own}, but in spec {layer.rows} x {layer.columns}, {words}")
