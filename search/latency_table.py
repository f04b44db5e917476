"""What layers take here beside dense ones, as measured, and what that makes a choice cost.

A cost in time is in millionths of what all searched layers take dense, one after the other.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from models.forms import WIN, Form, LayerUse
from models.frozen import Spec
from models.spec import LayerSpec
from models.structures.sizes import Kind
from search.rules import MenuKind

WHOLE = 1_000_000
TABLE = "latency.json"  # in the reference's folder
TIMES = "times.json"  # in the folder of each trial
_TIMES = TypeAdapter(dict[str, int])


class LayerShape(Spec):
    """What the time of a dense layer depends on; `tokens` are of one sample."""

    rows: PositiveInt
    columns: PositiveInt
    tokens: PositiveInt
    bias: bool

    @classmethod
    def of(cls, layer: LayerSpec) -> "LayerShape":
        """The shape of a layer, whatever its structure."""
        return cls(rows=layer.rows, columns=layer.columns, tokens=layer.tokens, bias=layer.bias)


class DenseTime(Spec):
    """Seconds that a dense layer takes for one batch within the dense network."""

    shape: LayerShape
    seconds: PositiveFloat


class TimeCurve(Spec):
    """Time over dense of sizes of one kind in one shape, by their MACs for one input, rising."""

    shape: LayerShape
    kind: Kind
    macs: tuple[PositiveInt, ...]
    ratios: tuple[PositiveFloat, ...]

    def ratio(self, macs: int) -> float:
        """Interpolate between the sizes that were measured; beyond them the nearest counts."""
        after = bisect_left(self.macs, macs)
        if after == 0:
            return self.ratios[0]
        if after == len(self.macs):
            return self.ratios[-1]
        (x0, x1), (y0, y1) = self.macs[after - 1 : after + 1], self.ratios[after - 1 : after + 1]
        return y0 + (y1 - y0) * (macs - x0) / (x1 - x0)


class LatencyTable(Spec):
    """All that was measured of a network's layers before anything was trained.

    Times are of `batch` samples on the search's device in single precision. `network_seconds` are
    the whole dense network's.
    """

    batch: PositiveInt
    network_seconds: PositiveFloat
    dense: tuple[DenseTime, ...]
    curves: tuple[TimeCurve, ...]


class Prices(Spec):
    """A table for one search: `parts` is what each searched layer takes dense, WHOLE in all."""

    parts: dict[str, NonNegativeInt]
    network_share: float
    table: LatencyTable

    @classmethod
    def of(cls, table: LatencyTable, layers: Sequence[LayerSpec]) -> "Prices":
        """Share the whole out among the searched layers, by their dense times."""
        seconds = {one.shape: one.seconds for one in table.dense}
        ends = list(accumulate((seconds[LayerShape.of(layer)] for layer in layers), initial=0.0))
        marks = [round(WHOLE * end / ends[-1]) for end in ends]
        return cls(
            parts={
                layer.name: after - before
                for layer, (before, after) in zip(layers, pairwise(marks), strict=True)
            },
            network_share=min(1.0, ends[-1] / table.network_seconds),
            table=table,
        )

    def dense(self, layer: LayerSpec) -> int:
        """What a searched layer takes dense."""
        return self.parts[layer.name]

    def estimate(self, layer: LayerSpec, kind: MenuKind, macs: int) -> int:
        """What a size of a kind takes in a layer, by the sizes measured next to it.

        What is not really faster than dense is run dense, and counts as that.
        """
        if kind == "dense":
            return self.parts[layer.name]
        curve = self.curve(layer, kind)
        return self.of_ratio(layer, 1.0 if curve is None else curve.ratio(macs))

    def of_ratio(self, layer: LayerSpec, ratio: float) -> int:
        """What a layer takes whose time over dense is known."""
        part = self.parts[layer.name]
        return part if ratio > WIN else math.ceil(ratio * part)

    def curve(self, layer: LayerSpec, kind: Kind) -> TimeCurve | None:
        """Return what was measured of a kind; None where it has no size in the layer."""
        return self._curves.get((LayerShape.of(layer), kind))

    @cached_property
    def _curves(self) -> dict[tuple[LayerShape, Kind], TimeCurve]:
        return {(one.shape, one.kind): one for one in self.table.curves}

    def least(self, layer: LayerSpec, kinds: Sequence[MenuKind]) -> int:
        """What the fastest size of these kinds takes in a layer: at most what dense does."""
        curves = (self.curve(layer, kind) for kind in kinds if kind != "dense")
        ratios = [min(curve.ratios) for curve in curves if curve is not None]
        return self.of_ratio(layer, min(ratios, default=1.0))

    def of_network(self, cost: int) -> float:
        """Predict the time of a network over the dense one's, by what its searched layers take."""
        return 1 - self.network_share * (1 - cost / WHOLE)


class MeasuredUse(Spec):
    """A layer as it is used, the form that is fastest, and its time over a dense layer's.

    That one has the shape `dense`, of the searched layer in whose place it stands.
    """

    use: LayerUse
    dense: LayerShape
    form: Form
    ratio: PositiveFloat


def load_table(folder: Path) -> LatencyTable:
    """Read the table that a search's reference has left in its folder."""
    return LatencyTable.model_validate_json((folder / TABLE).read_bytes())


def load_times(folder: Path) -> dict[str, int] | None:
    """Read what each layer of a trial's network takes; None where that does not count."""
    file = folder / TIMES
    return _TIMES.validate_json(file.read_bytes()) if file.exists() else None


def times_in_json(times: dict[str, int]) -> str:
    """Write what `load_times` reads."""
    return _TIMES.dump_json(times, indent=1).decode() + "\n"
