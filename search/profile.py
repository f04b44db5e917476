"""What the reference says of its layers: their inputs' second moments, low-rank terms, sensitivity.

Sensitivity is the measured rise of the loss for one unit of relative output error: the layer is
exchanged by its low-rank approximation of the budget's size, all others stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.checkpoint import load_tensors, save_tensors
from models.cost import layer_weight
from models.spec import ImageTask, LayerSpec
from models.structured.dense import DenseLinear
from models.structured.low_rank import Decomposition, decompose
from search.allocate import Allocation, Item, allocate
from search.data import Data
from search.spec import ResolvedSearch
from search.training import answers, task_loss

CALIBRATION = 1000  # training samples that the statistics are taken from


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One dense layer of the reference, with everything a cheaper one is made from."""

    layer: LayerSpec
    weight: Float[Tensor, "rows columns"]
    bias: Float[Tensor, " rows"] | None
    second_moment: Float[Tensor, "columns columns"]
    terms: Decomposition
    sensitivity: float

    def errors(self) -> list[float]:
        """Return the relative output error of every rank from 0 up."""
        lost = F.pad(self.terms.energies.flip(0).cumsum(0).flip(0), (0, 1))
        return (lost / lost[0].clamp(min=torch.finfo(lost.dtype).tiny)).tolist()


@dataclass(frozen=True, slots=True)
class Profile:
    """The eligible layers of the reference, in their order."""

    layers: tuple[LayerProfile, ...]

    def allocate_ranks(self, resolved: ResolvedSearch, budget: int) -> tuple[list[int], Allocation]:
        """Choose every layer's rank, at least 1, for the least expected rise of the loss."""
        menus = [
            [
                Item(rank_cost(p.layer, rank, resolved), p.sensitivity * error)
                for rank, error in enumerate(p.errors())
                if rank
            ]
            for p in self.layers
        ]
        allocation = allocate(menus, budget)
        return [index + 1 for index in allocation.chosen], allocation


def rank_cost(layer: LayerSpec, rank: int, resolved: ResolvedSearch) -> int:
    """Return what a rank costs in the search's quantity."""
    return layer_weight(layer, resolved.quantity) * rank * (layer.rows + layer.columns)


def profile(network: nn.Module, data: Data, resolved: ResolvedSearch) -> Profile:
    """Measure the eligible layers of a dense network on the first part of the training data."""
    inputs = data.train.inputs[:CALIBRATION]
    moments = second_moments(network, [layer.name for layer in resolved.layers], inputs)
    before = answers(network, inputs)
    targets = data.train.targets[:CALIBRATION]
    share = resolved.budget / resolved.dense_cost
    profiles = []
    for layer in resolved.layers:
        module = dense_layer(network, layer.name)
        weight = module.weight.detach().clone()
        terms = decompose(weight, moments[layer.name])
        energies = terms.energies
        rank = max(1, int(share * layer.rows * layer.columns / (layer.rows + layer.columns)))
        error = float(energies[rank:].sum() / energies.sum().clamp(min=1e-30))
        approximate = (terms.row_factor[:, :rank] @ terms.column_factor[:rank]).to(weight.dtype)
        with torch.no_grad():
            module.weight.copy_(approximate)
            after = answers(network, inputs)
            module.weight.copy_(weight)
        rise = _rise(data, before, after, targets)
        profiles.append(
            LayerProfile(
                layer=layer,
                weight=weight,
                bias=None if module.bias is None else module.bias.detach().clone(),
                second_moment=moments[layer.name],
                terms=terms,
                sensitivity=max(rise, 1e-12) / max(error, 1e-6),
            )
        )
    return Profile(tuple(profiles))


def dense_layer(network: nn.Module, name: str) -> DenseLinear:
    """Return a network's layer of that name, which must be dense."""
    module = network.get_submodule(name)
    assert isinstance(module, DenseLinear)
    return module


@torch.no_grad()
def second_moments(
    network: nn.Module, names: Sequence[str], inputs: Tensor
) -> dict[str, Float[Tensor, "columns columns"]]:
    """Return E[x x^T] over all tokens of the inputs of the named layers."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, x: Tensor) -> None:
        rows = x.flatten(0, -2).double()
        sums[name] = sums.get(name, 0) + rows.T @ rows
        counts[name] = counts.get(name, 0) + len(rows)

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _module, arguments, name=name: watch(name, arguments[0])
        )
        for name in names
    ]
    answers(network, inputs)
    for hook in hooks:
        hook.remove()
    return {name: sums[name] / counts[name] for name in names}


def save_profile(path: Path, measured: Profile) -> None:
    """Write a profile to one safetensors file."""
    tensors: dict[str, Tensor] = {}
    for p in measured.layers:
        tensors |= {
            f"{p.layer.name}.second_moment": p.second_moment,
            f"{p.layer.name}.row_factor": p.terms.row_factor,
            f"{p.layer.name}.column_factor": p.terms.column_factor,
            f"{p.layer.name}.energies": p.terms.energies,
        }
    notes = {"sensitivities": {p.layer.name: p.sensitivity for p in measured.layers}}
    save_tensors(path, tensors, notes)


def load_profile(path: Path, network: nn.Module, resolved: ResolvedSearch) -> Profile:
    """Read the profile of `network`, the reference it was made from."""
    tensors, notes = load_tensors(path)
    sensitivities: Mapping[str, float] = notes["sensitivities"]
    return Profile(
        tuple(
            _restore(layer, dense_layer(network, layer.name), tensors, sensitivities[layer.name])
            for layer in resolved.layers
        )
    )


def _restore(
    layer: LayerSpec, module: DenseLinear, tensors: Mapping[str, Tensor], sensitivity: float
) -> LayerProfile:
    return LayerProfile(
        layer=layer,
        weight=module.weight.detach().clone(),
        bias=None if module.bias is None else module.bias.detach().clone(),
        second_moment=tensors[f"{layer.name}.second_moment"],
        terms=Decomposition(
            tensors[f"{layer.name}.row_factor"],
            tensors[f"{layer.name}.column_factor"],
            tensors[f"{layer.name}.energies"],
        ),
        sensitivity=sensitivity,
    )


def _rise(data: Data, before: Tensor, after: Tensor, targets: Tensor) -> float:
    """How far the answers moved: for classes the divergence from the reference, never negative."""
    if isinstance(data.task, ImageTask):
        wanted, found = F.log_softmax(before, -1), F.log_softmax(after, -1)
        return float(F.kl_div(found, wanted, reduction="batchmean", log_target=True))
    return float(task_loss(data, after, targets))
