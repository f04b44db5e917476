"""Measuring what layers take: the table of a search before anything is trained, then what is found.

All is measured alone on the machine and kept, so that the same search on the same machine reads the
same numbers and finds the same structures.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import torch
from pydantic import TypeAdapter
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from models.checkpoint import write_text
from models.deployment import HOPELESS, PAIRS, WARM_UP, Timer, deploy, finish, seconds_taken
from models.forms import ChosenForm, LayerUse
from models.networks.build import build_network
from models.spec import LayerSpec, NetworkSpec
from models.structured.build import build_layer
from models.structures import Dense, Structure
from models.structures.sizes import Kind, grid, saves
from search.evaluation import BATCH, alone
from search.forms import load_choices, processor, save_choices
from search.latency_table import DenseTime, LatencyTable, LayerShape, MeasuredUse, TimeCurve
from search.progress import Progress, followed
from search.resolved import ResolvedSearch
from search.rules import smallest_member

TIMED_SHARES = (0.02, 0.07, 0.15, 0.3, 0.5, 0.7)  # of the dense MACs: sizes beside the smallest
REPEATS = 2  # of every timing, of which the least counts

_USES = TypeAdapter(tuple[MeasuredUse, ...])


def least_seconds(layer: nn.Module, inputs: Tensor) -> float:
    """Time a layer, on a busy machine too: what else runs only adds to the time."""
    return min(seconds_taken(layer, inputs) for _ in range(REPEATS))


@dataclass(frozen=True, slots=True)
class Clock:
    """Where and with what layers are timed; `kept` is the cache's folder for this machine.

    `forms` is the file of the forms that were fastest, which the last trial deploys.
    """

    device: torch.device
    lock: Path
    kept: Path
    forms: Path
    batch: int
    timer: Timer = least_seconds

    def costs(self, network: NetworkSpec, resolved: ResolvedSearch) -> dict[str, int]:
        """Return what each searched layer takes, by its own measurement; made now, or kept."""
        layers = {layer.name: layer for layer in network.layers}
        wanted = {one.name: self._use(layers[one.name]) for one in resolved.layers}
        shapes = {one.name: LayerShape.of(one) for one in resolved.layers}
        known = self._known()
        if any((wanted[name], shapes[name]) not in known for name in wanted):
            with alone(self.lock):
                known = self._known()
                for name, use in wanted.items():
                    if (use, shapes[name]) not in known:
                        known[use, shapes[name]] = self._measure(use, shapes[name])
                self.kept.mkdir(parents=True, exist_ok=True)
                write_text(self._file, _USES.dump_json(tuple(known.values()), indent=1).decode())
        found = {name: known[wanted[name], shapes[name]] for name in wanted}
        self._tell_forms(found.values())
        return {
            layer.name: resolved.measured.of_ratio(layer, found[layer.name].ratio)
            for layer in resolved.layers
        }

    @property
    def _file(self) -> Path:
        return self.kept / "uses.json"

    def _known(self) -> dict[tuple[LayerUse, LayerShape], MeasuredUse]:
        if not self._file.exists():
            return {}
        return {(one.use, one.dense): one for one in _USES.validate_json(self._file.read_bytes())}

    def _use(self, layer: LayerSpec) -> LayerUse:
        return LayerUse(
            structure=layer.structure,
            rows=layer.rows,
            columns=layer.columns,
            bias=layer.bias,
            dtype="float32",
            tokens=layer.tokens * self.batch,
            device=str(self.device),
        )

    def _measure(self, use: LayerUse, dense: LayerShape) -> MeasuredUse:
        """Time a layer, as it would be deployed, beside the dense one in whose place it stands."""
        generator = torch.Generator().manual_seed(0)
        same = (use.rows, use.columns, use.tokens) == (
            *(dense.rows, dense.columns),
            dense.tokens * self.batch,
        )
        if not isinstance(use.structure, Dense):
            assert same, "only dense layers stand in place of larger ones"
            module = self._layer(use.structure, dense)
            found = deploy(module, tokens=use.tokens, generator=generator, timer=self.timer)
            timed = found.timings.get(found.form)
            ratio = 1.0 if timed is None else timed.ratio
            return MeasuredUse(use=use, dense=dense, form=found.form, ratio=ratio)
        ratio = 1.0
        if not same:
            shape = LayerShape(
                rows=use.rows,
                columns=use.columns,
                tokens=use.tokens // self.batch,
                bias=use.bias,
            )
            ratio = self._beside(shape, dense, generator)
        return MeasuredUse(use=use, dense=dense, form="dense", ratio=ratio)

    def _beside(self, one: LayerShape, other: LayerShape, generator: torch.Generator) -> float:
        """Time a dense layer over another one, in pairs."""
        modules = [self._layer(Dense(), shape) for shape in (one, other)]
        inputs = [self._inputs(shape, generator) for shape in (one, other)]
        with torch.inference_mode():
            for module, x in zip(modules, inputs, strict=True):
                self.timer(module, x)
            ratios = [
                self.timer(modules[0], inputs[0]) / self.timer(modules[1], inputs[1])
                for _ in range(PAIRS)
            ]
        return statistics.median(ratios)

    def _layer(self, structure: Structure, shape: LayerShape) -> nn.Module:
        layer = build_layer(
            structure,
            rows=shape.rows,
            columns=shape.columns,
            bias=shape.bias,
            generator=torch.Generator().manual_seed(0),
        )
        return layer.to(self.device).eval()

    def _inputs(self, shape: LayerShape, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(shape.tokens * self.batch, shape.columns, generator=generator)
        return drawn.to(self.device)

    def _tell_forms(self, found: Iterable[MeasuredUse]) -> None:
        """Let the last trial deploy the forms that were priced."""
        new = {one.use: one.form for one in found if not isinstance(one.use.structure, Dense)}
        with alone(self.lock):
            kept = {one.use: one.form for one in load_choices(self.forms)}
            if any(kept.get(use) != form for use, form in new.items()):
                both = kept | new
                save_choices(self.forms, tuple(ChosenForm(use=u, form=f) for u, f in both.items()))

    def table(
        self,
        network: NetworkSpec,
        layers: Sequence[LayerSpec],
        kinds: Iterable[Kind],
        inputs: Tensor,
        progress: Progress,
    ) -> LatencyTable:
        """Return what layers of these kinds take, from the cache or measured now.

        Raises StoppedError between two kinds.
        """
        file = self.kept / "table.json"
        with alone(self.lock):
            if file.exists():
                return LatencyTable.model_validate_json(file.read_bytes())
            found = self._table(network, layers, sorted(set(kinds)), inputs, progress)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, found.model_dump_json(indent=1))
        return found

    def _table(
        self,
        network: NetworkSpec,
        layers: Sequence[LayerSpec],
        kinds: Sequence[Kind],
        inputs: Tensor,
        progress: Progress,
    ) -> LatencyTable:
        generator = torch.Generator().manual_seed(0)
        shapes = list(dict.fromkeys(LayerShape.of(layer) for layer in layers))
        whole = build_network(network, generator=generator).to(self.device).eval()
        names = [layer.name for layer in layers]
        network_seconds, seconds = _in_network(whole, inputs[: self.batch], names)
        pairs = [(shape, kind) for shape in shapes for kind in kinds if saves(kind) == "macs"]
        curves = [
            self._curve(shape, kind)
            for shape, kind in followed(pairs, progress, "timing", unit="kind")
        ]
        return LatencyTable(
            batch=self.batch,
            network_seconds=network_seconds,
            dense=tuple(
                DenseTime(
                    shape=shape,
                    seconds=statistics.median(
                        seconds[layer.name] for layer in layers if LayerShape.of(layer) == shape
                    ),
                )
                for shape in shapes
            ),
            curves=tuple(curve for curve in curves if curve is not None),
        )

    def _curve(self, shape: LayerShape, kind: Kind) -> TimeCurve | None:
        """Time some sizes of a kind, from the cheapest up, until one is hopeless."""
        generator = torch.Generator().manual_seed(0)
        sides = {"rows": shape.rows, "columns": shape.columns}
        smallest = smallest_member(kind, **sides)
        sizes = {
            one.mac_count(**sides): one
            for one in (smallest, *grid(kind, **sides, shares=TIMED_SHARES))
            if one is not None
        }
        found: dict[int, float] = {}
        for macs, structure in sorted(sizes.items()):
            module = self._layer(structure, shape)
            tokens = shape.tokens * self.batch
            timed = deploy(module, tokens=tokens, generator=generator, timer=self.timer)
            found[macs] = min((one.ratio for one in timed.timings.values()), default=1.0)
            # Of many small blocks the first are the slowest.
            if min(list(found.values())[-2:]) > max(HOPELESS, min(found.values())):
                break
        if not found:
            return None
        return curve_through(shape, kind, found)


def curve_through(shape: LayerShape, kind: Kind, found: Mapping[int, float]) -> TimeCurve:
    """Return the curve of what was timed, by MACs; a rank more never takes less."""
    macs = sorted(found)
    ratios = [found[one] for one in macs]
    if kind == "low rank":
        ratios = isotonic_regression(ratios).x.tolist()
    return TimeCurve(shape=shape, kind=kind, macs=tuple(macs), ratios=tuple(ratios))


def times_key(
    network: NetworkSpec,
    names: Sequence[str],
    kinds: Iterable[Kind],
    *,
    threads: int,
    device: torch.device,
) -> str:
    """Name what is measured by all that it depends on, in the network and on this machine."""
    facts = {
        "network": network.model_dump(mode="json"),
        "layers": list(names),
        "kinds": sorted(set(kinds)),
        "batch": BATCH,
        "threads": threads,
        "device": str(device),
        "matnas": version("matnas"),
        "torch": torch.__version__,
        "processor": processor(),
        "cards": [torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@torch.inference_mode()
def _in_network(
    network: nn.Module, inputs: Tensor, names: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """Time a network and, within its passes, the named layers, in seconds.

    A pass is cut where its layers begin and end, and every piece has its own median: on a busy
    machine hardly a pass is left alone, but most of the pieces are.
    """
    marks: list[tuple[str, float]] = []

    def mark(name: str) -> None:
        finish(inputs.device)
        marks.append((name, time.perf_counter()))

    for name in names:
        layer = network.get_submodule(name)
        layer.register_forward_pre_hook(lambda *_, name=name: mark(name))
        layer.register_forward_hook(lambda *_, name=name: mark(name))
    passes: list[list[tuple[str, float]]] = []
    for _ in range(WARM_UP + PAIRS):
        marks.clear()
        mark("")
        network(inputs)
        mark("")
        passes.append(list(marks))
    taken, whole = dict.fromkeys(names, 0.0), 0.0
    for place, ((before, _), (after, _)) in enumerate(pairwise(passes[0])):
        spans = [one[place + 1][1] - one[place][1] for one in passes[WARM_UP:]]
        median = statistics.median(spans)
        whole += median
        if before == after:
            taken[before] += median
    return whole, taken
