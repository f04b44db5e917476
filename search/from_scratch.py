"""Learning rates for training from scratch: the maximal-update rule for each tensor of a network.

Notation: a tensor of fan-in a, one of k cores of a matrix with n columns. Adam moves every entry by
about the learning rate, so the output by a times that: a rate n / (a k) of the dense layer's moves
both alike (Qiu et al., ICML 2024, arXiv 2406.06248). The dense layer's own is n' / n of the rate at
n' columns, where it was chosen (Yang et al., NeurIPS 2021, arXiv 2203.03466); together n' / (a k).
"""

from typing import Any

import torch
from torch import Tensor, nn

from models.spec import NetworkSpec
from models.structured import DenseLinear
from models.structured.trainable import TrainableLayer, outermost_layers
from search.self_guided import SelfGuided
from search.weight_normalisation import trainable_tensor


def rate_factors(layer: TrainableLayer, *, base_columns: int) -> dict[str, float]:
    """For every trainable tensor but the bias, what multiplies the learning rate of Adam.

    The rate is one that suits a dense layer of `base_columns` columns.
    """
    cores = max(1, layer.core_count())
    return {name: base_columns / (fan_in * cores) for name, fan_in in layer.fan_ins().items()}


def maximal_update_groups(
    network: nn.Module, *, base: NetworkSpec | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Group the parameters for Adam by the `factor` on the learning rate, as `fit` takes them.

    The rate is one that suits the dense network `base`, narrower or wider than this one and with
    the same layers by name; without it, the dense network as wide as this one. Whatever is no
    matrix, as biases and gains, learns at the rate itself. Matrices decay, all equally fast: AdamW
    multiplies the decay by the rate, and with it the best one would depend on the width (Wang &
    Aitchison, arXiv 2405.13698). Raises ValueError for a layer that `base` does not have.
    """
    factors = _factors(network, base)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        key = (factors.get(parameter, 1.0), parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": factor,
            "weight_decay": weight_decay / factor if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]


def silence(head: DenseLinear) -> None:
    """Begin with equal answers to everything, as the rule's readout does in the limit of width.

    Its variance would have to fall as 1 / columns^2, and a narrow network begin otherwise than a
    wide one; from zero the first step fills it.
    """
    with torch.no_grad():
        trainable_tensor(head, "weight").zero_()


def _factors(network: nn.Module, base: NetworkSpec | None) -> dict[Tensor, float]:
    columns = None if base is None else {layer.name: layer.columns for layer in base.layers}
    guided: dict[nn.Module, tuple[str, Tensor]] = {
        module.layer: (path, module.guide)
        for path, module in network.named_modules()
        if isinstance(module, SelfGuided)
    }
    factors: dict[Tensor, float] = {}
    for path, layer in outermost_layers(network):
        name, guide = guided.get(layer, (path, None))
        base_columns = _base_columns(layer, name, columns)
        if guide is not None:
            factors[guide] = base_columns / layer.dense_fan_in()
        for tensor, factor in rate_factors(layer, base_columns=base_columns).items():
            factors[trainable_tensor(layer, tensor)] = factor
    return factors


def _base_columns(layer: TrainableLayer, name: str, columns: dict[str, int] | None) -> int:
    if columns is None:
        return layer.dense_fan_in()
    if name not in columns:
        raise ValueError(f"the layer {name} is none of the base network's: {', '.join(columns)}")
    return columns[name]
