"""The form in which each layer is run, chosen by measuring the forms beside the dense matrix."""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from models.spec import NetworkSpec
from models.structured import DenseLinear, GblrLinear, LowRankLinear, StructuredLinear
from models.structured.spectral import SpectralLinear
from models.structures import Dense

# `structured` is the layer as it is; the others are W itself, the two forms of GBLR, and the two
# factors that a spectral layer makes of its reflections.
Form = Literal["dense", "structured", "packed", "sliced", "factors"]
# Seconds that one pass of a layer takes.
Timer = Callable[[nn.Module, Tensor], float]

PAIRS = 12  # timed rounds, each of which runs every form and the dense matrix once
WARM_UP = 2
SHORTEST = 3e-4  # seconds: a quicker pass is repeated for so long, or the clock decides
# A form that took longer than this in its first rounds, in every one, is not timed any more.
HOPELESS = 1.5
FIRST = 2
# A form that is not faster than this is no faster for sure: measured again, the same layer's median
# moves by a tenth on a busy machine. The dense matrix then is the choice that cannot lose.
WIN = 0.9


@dataclass(frozen=True, slots=True)
class Timing:
    """Time over the dense matrix's: the median and quartiles of interleaved pairs."""

    ratio: float
    quartiles: tuple[float, float]

    @property
    def wins(self) -> bool:
        """Whether this is faster than dense: by its median, and in three pairs of four."""
        return self.ratio <= WIN and self.quartiles[1] < 1


EVEN = Timing(1.0, (1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Deployed:
    """A layer in the form that was fastest, which is `dense` unless another really wins."""

    layer: StructuredLinear
    form: Form
    timing: Timing


@dataclass(frozen=True, slots=True)
class DeployedNetwork:
    """A copy of a network, and the form of each of its layers that has a structure."""

    network: nn.Module
    forms: Mapping[str, Form]

    @property
    def run_dense(self) -> tuple[str, ...]:
        """The layers with a structure whose dense matrix is faster, in the network's order."""
        return tuple(name for name, form in self.forms.items() if form == "dense")


def seconds_taken(layer: nn.Module, inputs: Tensor) -> float:
    """Run a module, again and again if it is quick, and wait for its device."""
    _finish(inputs.device)
    start, passes = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < SHORTEST:
        layer(inputs)
        _finish(inputs.device)
        passes += 1
    return taken / passes


def deploy(
    layer: StructuredLinear,
    *,
    tokens: int,
    generator: torch.Generator,
    timer: Timer = seconds_taken,
) -> Deployed:
    """Choose the form for this many input vectors, on the layer's device and in its dtype.

    The layer itself is left as it is. `generator` draws the inputs, on the CPU.
    """
    candidates = {form: _in_form(layer, form) for form in _forms(layer)}
    if not candidates:
        return Deployed(_in_form(layer, "dense"), "dense", EVEN)
    dense = _in_form(layer, "dense")
    example = next(layer.parameters())
    inputs = torch.randn(tokens, layer.columns, generator=generator).to(example)
    timings = _race(candidates, dense, inputs, timer)
    fastest = min(timings, key=lambda form: timings[form].ratio)
    if timings[fastest].wins:
        return Deployed(candidates[fastest], fastest, timings[fastest])
    return Deployed(dense, "dense", EVEN)


def deploy_network(
    network: nn.Module,
    spec: NetworkSpec,
    *,
    batch: int,
    generator: torch.Generator,
    timer: Timer = seconds_taken,
) -> DeployedNetwork:
    """Copy a network with every structured layer in its fastest form for this many samples.

    Layers of one shape and structure are measured once.
    """
    deployed = copy.deepcopy(network)
    forms: dict[str, Form] = {}
    known: dict[str, Form] = {}
    for layer in spec.layers:
        if isinstance(layer.structure, Dense):
            continue
        module = deployed.get_submodule(layer.name)
        assert isinstance(module, StructuredLinear), "a network's table names its layers"
        key = layer.model_dump_json(exclude={"name"})
        if key in known:
            found = _in_form(module, known[key])
        else:
            tokens = layer.tokens * batch
            chosen = deploy(module, tokens=tokens, generator=generator, timer=timer)
            found, known[key] = chosen.layer, chosen.form
        deployed.set_submodule(layer.name, found)
        forms[layer.name] = known[key]
    return DeployedNetwork(deployed, forms)


def _forms(layer: StructuredLinear) -> tuple[Form, ...]:
    """The forms that may be faster than the dense matrix."""
    match layer:
        case DenseLinear():
            return ()
        case GblrLinear():
            # As many terms as the matrix has rows or columns: more MACs than dense.
            narrow = 0 < layer.packed_rank < min(layer.rows, layer.columns)
            return ("packed", "sliced") if narrow else ("sliced",)
        case SpectralLinear():
            return ("structured", "factors")
        case _:
            return ("structured",)


@torch.no_grad()
def _in_form(layer: StructuredLinear, form: Form) -> StructuredLinear:
    """Build the layer anew in this form."""
    match form:
        case "dense":
            dense = DenseLinear.from_dense(layer.to_dense(), Dense(), bias=layer.bias)
            return dense.train(layer.training)
        case "packed":
            assert isinstance(layer, GblrLinear), "only GBLR has packed factors"
            packed = copy.deepcopy(layer)
            packed.set_form("packed")
            return _low_rank(layer, *packed.packed_factors())
        case "sliced":
            assert isinstance(layer, GblrLinear), "only GBLR has slices"
            sliced = copy.deepcopy(layer)
            sliced.set_form("sliced")
            return sliced
        case "factors":
            assert isinstance(layer, SpectralLinear), "only spectral layers have thin factors"
            return _low_rank(layer, *layer.thin_factors())
        case "structured":
            return copy.deepcopy(layer)
        case _:
            assert_never(form)


def _low_rank(layer: StructuredLinear, row_factor: Tensor, column_factor: Tensor) -> LowRankLinear:
    found = LowRankLinear.from_factors(row_factor, column_factor, bias=layer.bias)
    return found.to(next(layer.parameters())).train(layer.training)


@torch.inference_mode()
def _race(
    candidates: Mapping[Form, nn.Module], dense: nn.Module, inputs: Tensor, timer: Timer
) -> dict[Form, Timing]:
    """Time all forms and the dense matrix in turns, so that what else runs disturbs them alike."""
    for _ in range(WARM_UP):
        for layer in (dense, *candidates.values()):
            timer(layer, inputs)
    ratios: dict[Form, list[float]] = {form: [] for form in candidates}
    for _ in range(PAIRS):
        running = [form for form in candidates if not _hopeless(ratios[form])]
        if not running:
            break
        reference = timer(dense, inputs)
        for form in running:
            ratios[form].append(timer(candidates[form], inputs) / reference)
    return {form: timing(found) for form, found in ratios.items()}


def _hopeless(ratios: list[float]) -> bool:
    return len(ratios) == FIRST and min(ratios) > HOPELESS


def timing(ratios: list[float]) -> Timing:
    """The median and the quartiles of times over dense."""
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return Timing(median, (lower, upper))


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
