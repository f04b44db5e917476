"""The form in which each layer is run, chosen by measuring the forms beside the dense matrix."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor, nn

from models.forms import WIN, ChosenForm, Form, LayerUse, check_forms
from models.networks.build import check_table
from models.spec import LayerSpec, NetworkSpec
from models.structured import DenseLinear, GblrLinear, LowRankLinear, StructuredLinear
from models.structured.checks import check_generator, check_module
from models.structured.spectral import SpectralLinear
from models.structures import Dense
from models.structures.base import check_range

# Seconds that one pass of a layer takes.
Timer = Callable[[nn.Module, Tensor], float]

PAIRS = 12  # timed rounds, each of which runs every form and the dense matrix once
WARM_UP = 2
SHORTEST = 3e-4  # seconds: a quicker pass is repeated for so long, or the clock decides
# A form that took longer than this in its first rounds, in every one, is not timed any more.
HOPELESS = 1.5
FIRST = 3  # so that one that was disturbed does not move the median


@dataclass(frozen=True, slots=True)
class Timing:
    """Time over the dense matrix's: the median and quartiles of interleaved pairs."""

    ratio: float
    quartiles: tuple[float, float]

    @property
    def wins(self) -> bool:
        """Whether this is faster than dense: by its median, and in three pairs of four."""
        return self.ratio <= WIN and self.quartiles[1] < 1


@dataclass(frozen=True, slots=True)
class Deployed:
    """A layer in the form that was fastest, which is `dense` unless another really wins.

    `timings` has the time over the dense matrix's of each form that was measured: none for a dense
    layer. A form that was given up as hopeless has its first rounds alone, and one that won has
    those of its confirmation, which decided.
    """

    layer: StructuredLinear
    form: Form
    timings: Mapping[Form, Timing]


@dataclass(frozen=True, slots=True)
class DeployedNetwork:
    """A copy of a network, the form of each of its layers that has a structure, and the choices."""

    network: nn.Module
    forms: Mapping[str, Form]
    chosen: tuple[ChosenForm, ...]


def seconds_taken(layer: nn.Module, inputs: Tensor) -> float:
    """Run a module, again and again if it is quick, and wait for its device."""
    finish(inputs.device)
    start, passes, taken = time.perf_counter(), 0, 0.0
    # At least once: on a busy machine the time may be over before the first pass.
    while not passes or taken < SHORTEST:
        layer(inputs)
        finish(inputs.device)
        passes += 1
        taken = time.perf_counter() - start
    return taken / passes


def deploy(
    layer: nn.Module,
    *,
    tokens: int,
    generator: torch.Generator,
    timer: Timer = seconds_taken,
) -> Deployed:
    """Choose the form for this many input vectors, on the layer's device and in its dtype.

    A form that wins is timed a second time, alone beside dense, and its median must win again: what
    else the machine did may have decided the first time. The layer itself is left as it is.
    `generator` draws the inputs, on the CPU. ValueError for what is no StructuredLinear, and for no
    inputs.
    """
    layer = _structured(layer, "layer")
    check_range("tokens", tokens, low=1, where="a measurement")
    check_generator(generator)
    candidates = {form: _in_form(layer, form) for form in _forms(layer)}
    if not candidates:
        return Deployed(_in_form(layer, "dense"), "dense", {})
    dense = _in_form(layer, "dense")
    example = next(layer.parameters())
    inputs = torch.randn(tokens, layer.columns, generator=generator).to(example)
    timings = _race(candidates, dense, inputs, timer)
    fastest = min(timings, key=lambda form: timings[form].ratio)
    if timings[fastest].wins:
        again = _race({fastest: candidates[fastest]}, dense, inputs, timer, dense_first=False)
        timings |= again
        if again[fastest].ratio <= WIN:
            return Deployed(candidates[fastest], fastest, timings)
    return Deployed(dense, "dense", timings)


def deploy_network(
    network: nn.Module,
    spec: NetworkSpec,
    *,
    batch: int,
    generator: torch.Generator,
    chosen: Iterable[ChosenForm] = (),
    timer: Timer = seconds_taken,
) -> DeployedNetwork:
    """Copy a network with every structured layer in its fastest form for this many samples.

    Layers that are used alike are measured once; one whose use `chosen` has takes the form from
    there, if it admits that form still. What comes back as `chosen` is all of that and what was
    measured. ValueError where `spec` is not the table of the network's layers, or no sample is
    given.
    """
    check_range("batch", batch, low=1, where="a measurement")
    check_generator(generator)
    check_table(network, spec)
    known = {one.use: one.form for one in chosen}
    forms: dict[str, Form] = {}
    for layer in spec.layers:
        if isinstance(layer.structure, Dense):
            continue
        module = _structured(_submodule(network, layer.name), layer.name)
        use = _use(layer, module, batch=batch)
        if known.get(use) not in _admitted(module):
            known[use] = deploy(module, tokens=use.tokens, generator=generator, timer=timer).form
        forms[layer.name] = known[use]
    return DeployedNetwork(
        network=with_forms(network, forms),
        forms=forms,
        chosen=tuple(ChosenForm(use=use, form=form) for use, form in known.items()),
    )


def with_forms(network: nn.Module, forms: Mapping[str, Form]) -> nn.Module:
    """Copy a network with the named layers in these forms; nothing is measured.

    ValueError where a name is no layer of the network, or its layer has no such form.
    """
    check_forms(forms)
    copied = copy.deepcopy(network)
    for name, form in forms.items():
        layer = _structured(_submodule(copied, name), name)
        admitted = _admitted(layer)
        if form not in admitted:
            words = f"{layer.spec.in_words()} admits {' or '.join(admitted)}"
            raise ValueError(f"the form of {name} is {form}, but {words}")
        copied.set_submodule(name, _in_form(layer, form))
    return copied


def _use(layer: LayerSpec, module: StructuredLinear, *, batch: int) -> LayerUse:
    example = next(module.parameters())
    return LayerUse(
        structure=layer.structure,
        rows=layer.rows,
        columns=layer.columns,
        bias=layer.bias,
        dtype=str(example.dtype).removeprefix("torch."),
        tokens=layer.tokens * batch,
        device=str(example.device),
    )


def _submodule(network: nn.Module, name: str) -> nn.Module:
    check_module("network", network)
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the network has no layer {name}") from error


def _structured(layer: nn.Module, argument: str) -> StructuredLinear:
    if isinstance(layer, StructuredLinear):
        return layer
    kind = type(layer).__name__
    raise ValueError(f"{argument} is a {kind}, but deployment admits a StructuredLinear")


def _admitted(layer: StructuredLinear) -> tuple[Form, ...]:
    return ("dense", *_forms(layer))


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
    candidates: Mapping[Form, nn.Module],
    dense: nn.Module,
    inputs: Tensor,
    timer: Timer,
    *,
    dense_first: bool = True,
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
        before = timer(dense, inputs) if dense_first else None
        taken = {form: timer(candidates[form], inputs) for form in running}
        reference = timer(dense, inputs) if before is None else before
        for form, seconds in taken.items():
            ratios[form].append(seconds / reference)
    return {form: timing(found) for form, found in ratios.items()}


def _hopeless(ratios: list[float]) -> bool:
    return len(ratios) == FIRST and min(ratios) > HOPELESS


def timing(ratios: list[float]) -> Timing:
    """The median and the quartiles of times over dense."""
    lower, median, upper = statistics.quantiles(ratios, n=4)
    # Of two, quartiles are extrapolated beyond both.
    return Timing(median, (max(lower, min(ratios)), min(upper, max(ratios))))


def finish(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
