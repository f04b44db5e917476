"""What the reference says of its layers: which low-rank terms its answers depend on, and how much.

Notation: C = E[x x^T] of a layer's inputs; G = E[g g^T] of the gradients, at its outputs, of the
answers' random projections. The answers move by tr(G D C D^T) to second order when a layer moves by
D, so terms of G^(1/2) W C^(1/2) can be compared across layers. For terms of W C^(1/2) alone the
sensitivity says it: the measured rise of the loss for one unit of relative output error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.checkpoint import load_tensors, save_tensors
from models.cost import layer_weight
from models.spec import LayerSpec, MatrixTask
from models.structured.dense import DenseLinear
from models.structured.low_rank import Decomposition, decompose
from search.allocate import Allocation, Item, allocate
from search.data import Data
from search.progress import Progress, Update
from search.spec import ResolvedSearch
from search.training import answers, divergence, pass_size, stop_if_asked, task_loss

Awareness = Literal["output", "answer"]
CALIBRATION = 1000  # training samples that the statistics are taken from
PROJECTIONS = 2  # of every answer, for the curvature


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One dense layer of the reference, with everything a cheaper one is made from."""

    layer: LayerSpec
    weight: Float[Tensor, "rows columns"]
    bias: Float[Tensor, " rows"] | None
    second_moment: Float[Tensor, "columns columns"]
    curvature: Float[Tensor, "rows rows"] | None
    output_terms: Decomposition
    sensitivity: float
    answer_terms: Decomposition

    def terms(self, aware: Awareness) -> Decomposition:
        """Return the low-rank terms that are best for the layer's output, or for the answers."""
        return self.output_terms if aware == "output" else self.answer_terms

    def errors(self, aware: Awareness) -> list[float]:
        """Return the expected harm of every rank from 0 up, comparable across layers."""
        energies = self.terms(aware).energies
        lost = F.pad(energies.flip(0).cumsum(0).flip(0), (0, 1))
        if aware == "answer":
            lost *= self.layer.tokens  # every token's movement moves the answers
        else:
            lost *= self.sensitivity / lost[0].clamp(min=torch.finfo(lost.dtype).tiny)
        return lost.tolist()


@dataclass(frozen=True, slots=True)
class Profile:
    """The eligible layers of the reference, in their order."""

    layers: tuple[LayerProfile, ...]

    def allocate_ranks(
        self, resolved: ResolvedSearch, budget: int, aware: Awareness
    ) -> tuple[list[int], Allocation]:
        """Choose every layer's rank, at least 1, for the least expected harm."""
        menus = [
            [
                Item(rank_cost(p.layer, rank, resolved), error)
                for rank, error in enumerate(p.errors(aware))
                if rank
            ]
            for p in self.layers
        ]
        allocation = allocate(menus, budget)
        return [index + 1 for index in allocation.chosen], allocation


def rank_cost(layer: LayerSpec, rank: int, resolved: ResolvedSearch) -> int:
    """Return what a rank costs in the search's quantity."""
    return layer_weight(layer, resolved.quantity) * rank * (layer.rows + layer.columns)


def profile(
    network: nn.Module, data: Data, resolved: ResolvedSearch, progress: Progress
) -> Profile:
    """Measure the eligible layers of a dense network on the first part of the training data.

    Raises StoppedError between two layers.
    """
    inputs, targets = (part := data.calibration(CALIBRATION)).inputs, part.targets
    names = [layer.name for layer in resolved.layers]
    moments = second_moments(network, names, inputs)
    curvatures: Mapping[str, Tensor] = {}
    if not isinstance(data.task, MatrixTask):  # whose answers are its layer's output
        curvatures = output_curvatures(network, names, inputs)
    before = answers(network, inputs)
    share = resolved.budget / resolved.dense_cost
    profiles = []
    for index, layer in enumerate(resolved.layers):
        stop_if_asked(progress)
        progress.report(Update("profile", index, len(resolved.layers), unit="layer"))
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
                curvature=curvatures.get(layer.name),
                output_terms=terms,
                sensitivity=max(rise, 1e-12) / max(error, 1e-6),
                answer_terms=decompose(weight, moments[layer.name], curvatures.get(layer.name)),
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
        rows = x.flatten(0, -2)
        sums[name] = sums.get(name, 0) + (rows.T @ rows).double()
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


def output_curvatures(
    network: nn.Module, names: Sequence[str], inputs: Tensor
) -> dict[str, Float[Tensor, "rows rows"]]:
    """Return E[g g^T] over all tokens of the outputs of the named layers.

    g is the gradient of a random +-1 projection of the centred answers, drawn with a fixed seed.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    outputs: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _module, _arguments, output, name=name: outputs.update({name: output})
        )
        for name in names
    ]
    network.eval()
    generator = torch.Generator().manual_seed(0)
    for samples in inputs.split(pass_size(inputs)):
        for _ in range(PROJECTIONS):
            found = network(samples)
            signs = torch.randint(0, 2, found.shape, generator=generator) * 2.0 - 1.0
            projected = ((found - found.mean(-1, keepdim=True)) * signs).sum()
            gradients = torch.autograd.grad(projected, [outputs[name] for name in names])
            for name, gradient in zip(names, gradients, strict=True):
                rows = gradient.flatten(0, -2)
                sums[name] = sums.get(name, 0) + (rows.T @ rows).double()
                counts[name] = counts.get(name, 0) + len(rows)
    for hook in hooks:
        hook.remove()
    return {name: sums[name] / counts[name] for name in names}


def save_profile(path: Path, measured: Profile) -> None:
    """Write a profile to one safetensors file."""
    tensors: dict[str, Tensor] = {}
    for p in measured.layers:
        tensors |= {
            f"{p.layer.name}.second_moment": p.second_moment,
            **({} if p.curvature is None else {f"{p.layer.name}.curvature": p.curvature}),
            **_term_tensors(f"{p.layer.name}.output", p.output_terms),
            **_term_tensors(f"{p.layer.name}.answer", p.answer_terms),
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
        curvature=tensors.get(f"{layer.name}.curvature"),
        output_terms=_terms(f"{layer.name}.output", tensors),
        sensitivity=sensitivity,
        answer_terms=_terms(f"{layer.name}.answer", tensors),
    )


def _term_tensors(prefix: str, terms: Decomposition) -> dict[str, Tensor]:
    return {f"{prefix}.{field}": getattr(terms, field) for field in _TERM_FIELDS}


def _terms(prefix: str, tensors: Mapping[str, Tensor]) -> Decomposition:
    return Decomposition(**{field: tensors[f"{prefix}.{field}"] for field in _TERM_FIELDS})


_TERM_FIELDS = ("row_factor", "column_factor", "energies")


def _rise(data: Data, before: Tensor, after: Tensor, targets: Tensor) -> float:
    """How far the answers moved: for scores the divergence from the reference, never negative."""
    if isinstance(data.task, MatrixTask):
        return float(task_loss(data, after, targets))
    return float(divergence(after, before))
