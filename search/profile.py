"""What the reference says of its layers: which low-rank terms its answers depend on, and how much.

Notation: C = E[x x^T] of a layer's inputs; G = E[g g^T] of the gradients, at its outputs, of the
answers' random projections. The answers move by tr(G D C D^T) to second order when a layer moves by
D, so terms of G^(1/2) W C^(1/2) can be compared across layers. For terms of W C^(1/2) alone the
sensitivity says it: the measured rise of the loss for one unit of relative output error.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.checkpoint import load_tensors, save_tensors, write_text
from models.spec import LayerSpec, MatrixTask
from models.structured.dense import DenseLinear
from models.structured.low_rank import Decomposition, decompose
from search.allocate import Allocation, Item, allocate
from search.data import Data
from search.menu import Menu
from search.progress import Progress, followed
from search.resolved import ResolvedSearch
from search.training import answers, divergence, pass_size, task_loss

Awareness = Literal["output", "answer"]
CALIBRATION = 1000  # training samples that the statistics are taken from
RISE_SAMPLES = 250  # of them, for each layer's sensitivity: four times as many find the same
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

    def near(self, weight: Tensor) -> "LayerProfile":
        """Return it with both second moments as a weight is: on its device, in its precision."""
        return replace(
            self,
            second_moment=self.second_moment.to(weight),
            curvature=None if self.curvature is None else self.curvature.to(weight),
        )

    def errors(self, aware: Awareness) -> list[float]:
        """Return the expected harm of every rank from 0 up, comparable across layers."""
        return self.harms(self.terms(aware), aware)

    def harms(self, terms: Decomposition, aware: Awareness) -> list[float]:
        """Return the same for the terms of what is left of the matrix beside something else."""
        energies = terms.energies
        lost = F.pad(energies.flip(0).cumsum(0).flip(0), (0, 1))
        if aware == "answer":
            lost *= self.layer.tokens  # every token's movement moves the answers
        else:
            whole = self.output_terms.energies.sum()
            lost *= self.sensitivity / whole.clamp(min=torch.finfo(lost.dtype).tiny)
        return lost.tolist()

    def decompose_rest(
        self, rest: Float[Tensor, "rows columns"], aware: Awareness
    ) -> Decomposition:
        """Return the low-rank terms of another matrix in this one's place."""
        return decompose(rest, self.second_moment, self.curvature if aware == "answer" else None)


@dataclass(frozen=True, slots=True)
class Profile:
    """The eligible layers of the reference, in their order, and what each may be made of.

    `left_dense` has those that cannot be exchanged, each with the reason.
    """

    layers: tuple[LayerProfile, ...]
    menu: Menu = field(default_factory=Menu)
    left_dense: Mapping[str, str] = field(default_factory=dict)

    def allocate_ranks(
        self, resolved: ResolvedSearch, budget: int, aware: Awareness
    ) -> tuple[list[int], Allocation]:
        """Choose every layer's rank, at least 1, for the least expected harm.

        Under a budget in time, a layer that is better run dense has all its ranks.
        """
        menus = [
            [
                Item(resolved.low_rank(p.layer, rank), error)
                for rank, error in enumerate(p.errors(aware))
                if rank
            ]
            for p in self.layers
        ]
        allocation = allocate(menus, budget)
        return [index + 1 for index in allocation.chosen], allocation


def profile(
    network: nn.Module,
    data: Data,
    resolved: ResolvedSearch,
    progress: Progress,
    *,
    kept: Path | None = None,
) -> Profile:
    """Measure the eligible layers of a dense network on the first part of the training data.

    What the folder `kept` has of the same network and layers is not measured again. Whatever runs
    the network does so on its device; what is found is on the CPU, for the decompositions are in
    double precision. Raises StoppedError between two layers.
    """
    left = not_exchangeable(network, resolved.eligible)
    layers = [layer for layer in resolved.layers if layer.name not in left]
    names = [layer.name for layer in layers]
    tensors = _statistics(network, data, names, progress, kept=kept)
    idle = [name for name in names if f"{name}.second_moment" not in tensors]
    left |= dict.fromkeys(idle, "the network never calls it")
    layers = [layer for layer in layers if layer.name not in left]
    rises = _Rises(network, data, kept=kept)
    share = resolved.budget / resolved.dense_cost
    profiles = []
    for layer in followed(layers, progress, "profile", unit="layer"):
        module = dense_layer(network, layer.name)
        terms = _terms(f"{layer.name}.output", tensors)
        rank = max(1, int(share * layer.rows * layer.columns / (layer.rows + layer.columns)))
        error = float(terms.energies[rank:].sum() / terms.energies.sum().clamp(min=1e-30))
        rise = rises.of(layer.name, module, terms, rank)
        profiles.append(_restore(layer, module, tensors, max(rise, 1e-12) / max(error, 1e-6)))
    rises.keep()
    return Profile(tuple(profiles), left_dense=left)


def not_exchangeable(network: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Say of the named layers which have to stay as they are, and why."""
    holders: dict[int, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        for value in module.parameters(recurse=False):
            holders.setdefault(_place(value), []).append(path)
    found = {}
    for name in names:
        module = network.get_submodule(name)
        others = {
            path for value in module.parameters() for path in holders[_place(value)] if path != name
        }
        if not isinstance(module, DenseLinear):
            found[name] = f"it is a {type(module).__name__}, not a dense linear layer"
        elif others:
            found[name] = f"it shares its numbers with {', '.join(sorted(others))}"
    return found


def _place(value: Tensor) -> int:
    """Where a tensor's numbers are: the same for whatever shares them."""
    return value.untyped_storage().data_ptr() or id(value)


def _statistics(
    network: nn.Module,
    data: Data,
    names: Sequence[str],
    progress: Progress,
    *,
    kept: Path | None,
) -> Mapping[str, Tensor]:
    """Return C, G and the terms of every layer that is called, named as in a profile's file."""
    file = None if kept is None else kept / "layers.safetensors"
    if file is not None and file.exists():
        return load_tensors(file)[0]
    inputs = data.calibration(CALIBRATION).inputs
    moments = second_moments(network, names, inputs)
    curvatures: Mapping[str, Tensor] = {}
    called = [name for name in names if name in moments]
    if not isinstance(data.task, MatrixTask):  # whose answers are its layer's output
        curvatures = output_curvatures(network, called, inputs)
    tensors: dict[str, Tensor] = {}
    for name in followed(called, progress, "decomposition", unit="layer"):
        weight = dense_layer(network, name).weight.detach().cpu()
        plain = decompose(weight, moments[name])
        aware = decompose(weight, moments[name], curvatures[name]) if curvatures else plain
        tensors |= _layer_tensors(name, moments[name], curvatures.get(name), plain, aware)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, tensors)
    return tensors


class _Rises:
    """How far the answers move when a layer is cut to a rank; none is measured twice."""

    def __init__(self, network: nn.Module, data: Data, *, kept: Path | None) -> None:
        self.network, self.data = network, data
        self.part = data.calibration(RISE_SAMPLES)
        self.before: Tensor | None = None
        self.file = None if kept is None else kept / "rises.json"
        self.known: dict[str, float] = {}
        if self.file is not None and self.file.exists():
            self.known = json.loads(self.file.read_text(encoding="utf-8"))

    @torch.no_grad()
    def of(self, name: str, module: DenseLinear, terms: Decomposition, rank: int) -> float:
        """Measure the rise, and leave the layer as it was."""
        key = f"{name}/{rank}"
        if key not in self.known:
            if self.before is None:
                self.before = answers(self.network, self.part.inputs)
            weight = module.weight.clone()
            module.weight.copy_(terms.row_factor[:, :rank] @ terms.column_factor[:rank])
            after = answers(self.network, self.part.inputs)
            module.weight.copy_(weight)
            self.known[key] = _rise(self.data, self.before, after, self.part.targets)
        return self.known[key]

    def keep(self) -> None:
        """Write what is known for the next search."""
        if self.file is not None and self.before is not None:
            write_text(self.file, json.dumps(self.known))


def dense_layer(network: nn.Module, name: str) -> DenseLinear:
    """Return a network's layer of that name, which must be dense."""
    module = network.get_submodule(name)
    assert isinstance(module, DenseLinear)
    return module


@torch.no_grad()
def second_moments(
    network: nn.Module, names: Sequence[str], inputs: Tensor
) -> dict[str, Float[Tensor, "columns columns"]]:
    """Return E[x x^T] over all tokens of the inputs of those named layers that are called."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, x: Tensor) -> None:
        rows = x.flatten(0, -2)
        sums[name] = sums.get(name, 0) + (rows.T @ rows).cpu().double()
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
    return {name: sums[name] / counts[name] for name in names if name in sums}


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
        found = network(samples)
        centred = found - found.mean(-1, keepdim=True)
        watched = [outputs[name] for name in names]
        for number in range(1, PROJECTIONS + 1):
            signs = torch.randint(0, 2, found.shape, generator=generator, device="cpu") * 2.0 - 1.0
            projected = (centred * signs.to(found.device)).sum()
            more = number < PROJECTIONS
            gradients = torch.autograd.grad(projected, watched, retain_graph=more)
            for name, gradient in zip(names, gradients, strict=True):
                rows = gradient.flatten(0, -2)
                sums[name] = sums.get(name, 0) + (rows.T @ rows).cpu().double()
                counts[name] = counts.get(name, 0) + len(rows)
    for hook in hooks:
        hook.remove()
    return {name: sums[name] / counts[name] for name in names}


def save_profile(path: Path, measured: Profile) -> None:
    """Write a profile to one safetensors file, and its menu beside it."""
    tensors: dict[str, Tensor] = {}
    for p in measured.layers:
        statistics = (p.second_moment, p.curvature, p.output_terms, p.answer_terms)
        tensors |= _layer_tensors(p.layer.name, *statistics)
    notes = {
        "sensitivities": {p.layer.name: p.sensitivity for p in measured.layers},
        "left_dense": dict(measured.left_dense),
    }
    save_tensors(path, tensors, notes)
    write_text(_menu_file(path), measured.menu.model_dump_json())


def load_profile(path: Path, network: nn.Module, resolved: ResolvedSearch) -> Profile:
    """Read the profile of `network`, the reference it was made from."""
    tensors, notes = load_tensors(path)
    sensitivities: Mapping[str, float] = notes["sensitivities"]
    return Profile(
        tuple(
            _restore(layer, dense_layer(network, layer.name), tensors, sensitivities[layer.name])
            for layer in resolved.layers
            if layer.name in sensitivities
        ),
        Menu.model_validate_json(_menu_file(path).read_bytes()),
        notes["left_dense"],
    )


def _menu_file(path: Path) -> Path:
    return path.with_name("menu.json")


def _restore(
    layer: LayerSpec, module: DenseLinear, tensors: Mapping[str, Tensor], sensitivity: float
) -> LayerProfile:
    return LayerProfile(
        layer=layer,
        weight=module.weight.detach().cpu().clone(),
        bias=None if module.bias is None else module.bias.detach().cpu().clone(),
        second_moment=tensors[f"{layer.name}.second_moment"],
        curvature=tensors.get(f"{layer.name}.curvature"),
        output_terms=_terms(f"{layer.name}.output", tensors),
        sensitivity=sensitivity,
        answer_terms=_terms(f"{layer.name}.answer", tensors),
    )


def _layer_tensors(
    name: str,
    second_moment: Tensor,
    curvature: Tensor | None,
    output_terms: Decomposition,
    answer_terms: Decomposition,
) -> dict[str, Tensor]:
    return {
        f"{name}.second_moment": second_moment,
        **({} if curvature is None else {f"{name}.curvature": curvature}),
        **_term_tensors(f"{name}.output", output_terms),
        **_term_tensors(f"{name}.answer", answer_terms),
    }


def _term_tensors(prefix: str, terms: Decomposition) -> dict[str, Tensor]:
    # As a file has them, so that what follows has the same last bits where it is read from one.
    return {
        f"{prefix}.{field}": getattr(terms, field).clone(memory_format=torch.contiguous_format)
        for field in _TERM_FIELDS
    }


def _terms(prefix: str, tensors: Mapping[str, Tensor]) -> Decomposition:
    return Decomposition(**{field: tensors[f"{prefix}.{field}"] for field in _TERM_FIELDS})


_TERM_FIELDS = ("row_factor", "column_factor", "energies")


def _rise(data: Data, before: Tensor, after: Tensor, targets: Tensor) -> float:
    """How far the answers moved: for scores the divergence from the reference, never negative."""
    if isinstance(data.task, MatrixTask):
        return float(task_loss(data, after, targets))
    return float(divergence(after, before))
