"""A found network as an SVG of text alone: for every searched layer a panel with its structure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, islice
from math import sqrt

from models.cost import dense_cost, layer_cost
from models.spec import LayerSpec, NetworkSpec
from models.structures import Structure
from models.structures.base import Patch, Tone, whole

# Pixels. Every matrix gets the same area, in its own proportions, so that small layers can be read;
# its true size stands in the label.
AREA, LONGEST, SHORTEST = 112.0**2, 240.0, 6.0
MARGIN, GAP, LABEL, CELL = 28.0, 30.0, 44.0, 132.0
MOST_IN_A_LINE = 6
MOST_PATCHES = 5000  # of a matrix: more are smaller than a pixel, and only fill the file
TIMES = "\N{MULTIPLICATION SIGN}"
PAPER, FIELD, FRAME, INK, FAINT = "#faf9f6", "#ffffff", "#cfcabf", "#23211d", "#777067"
COLOURS: Mapping[Tone, str] = {
    "dense": "#857f74",
    "low rank": "#b8562c",
    "blocks": "#2c7a57",
    "rectangles": "#2a5ca8",
    "tiles": "#6b3fa0",
    "sparse entries": "#a83254",
    "product of sparse factors": "#8a7a1f",
    "tensor network": "#1f7f8a",
    "shift-invariant": "#5b6b2f",
}


def draw(network: NetworkSpec, eligible: Sequence[str]) -> str:
    """Draw the eligible layers, a line for each block, with what each costs and holds."""
    layers = [layer for layer in network.layers if layer.name in set(eligible)]
    lines = list(_lines(layers))
    widths = [
        max(CELL, *(_size(line[place]).width for line in lines if place < len(line)))
        for place in range(max(map(len, lines), default=0))
    ]
    top = MARGIN + 82
    parts = [_heading(network, layers), _legend(layers)]
    for line in lines:
        x = MARGIN
        block = line[0].name.rpartition(".")[0]
        if block:
            parts.append(_text(block, x, top, size=13, weight=600))
            parts.append(_rule(x + 9.0 * len(block) + 6, top - 4, _width(widths) - MARGIN))
            top += 22
        for layer, width in zip(line, widths, strict=False):
            parts.append(_panel(layer, x=x, y=top))
            x += width + GAP
        top += LABEL + max(_size(layer).height for layer in line) + GAP
    height = top - GAP + MARGIN
    return _page(f"{network.model.kind} network", parts, width=_width(widths), height=height)


def draw_structure(structure: Structure, *, rows: int, columns: int) -> str:
    """Draw one structure alone."""
    layer = LayerSpec(name="matrix", rows=rows, columns=columns, structure=structure)
    size = _size(layer)
    box = _Box(1.0, 1.0, size.width, size.height)
    parts = _matrix(layer, box)
    return _page(structure.in_words(), parts, width=box.width + 2, height=box.height + 2)


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle on the page."""

    x: float
    y: float
    width: float
    height: float

    def part(self, x: float, y: float, width: float, height: float) -> "_Box":
        """A part given in shares of this box, never thinner than can be seen."""
        return _Box(
            self.x + x * self.width,
            self.y + y * self.height,
            max(width * self.width, 1.2),
            max(height * self.height, 1.2),
        )

    def svg(self, fill: str, opacity: float, *, edge: str = "none") -> str:
        """The element."""
        return (
            f'<rect x="{self.x:.2f}" y="{self.y:.2f}" width="{self.width:.2f}" '
            f'height="{self.height:.2f}" fill="{fill}" fill-opacity="{opacity:.3f}" '
            f'stroke="{edge}" stroke-opacity="0.5" stroke-width="0.6"/>'
        )


def _lines(layers: Sequence[LayerSpec]) -> Iterator[list[LayerSpec]]:
    for _, group in groupby(layers, key=lambda layer: layer.name.rpartition(".")[0]):
        block = list(group)
        for start in range(0, len(block), MOST_IN_A_LINE):
            yield block[start : start + MOST_IN_A_LINE]


def _size(layer: LayerSpec) -> _Box:
    scale = sqrt(AREA / (layer.rows * layer.columns))
    scale = min(scale, LONGEST / max(layer.rows, layer.columns))
    return _Box(0.0, 0.0, max(SHORTEST, layer.columns * scale), max(SHORTEST, layer.rows * scale))


def _width(widths: Sequence[float]) -> float:
    return max(2 * MARGIN + sum(widths) + GAP * (len(widths) - 1), 400.0)


def _panel(layer: LayerSpec, *, x: float, y: float) -> str:
    size = _size(layer)
    share = layer_cost(layer, "macs") / dense_cost(layer, "macs")
    shape = f"{layer.rows} {TIMES} {layer.columns}, {_percent(share)}"
    label = [
        _text(layer.name.rpartition(".")[2], x, y + 4, size=13, weight=600),
        _text(layer.structure.in_words(), x, y + 19, size=11),
        _text(shape, x, y + 33, size=11, ink=FAINT),
    ]
    box = _Box(x, y + LABEL, size.width, size.height)
    return _group(_sentence(layer), [*label, *_matrix(layer, box)])


def _matrix(layer: LayerSpec, box: _Box) -> list[str]:
    field = box.svg(FIELD, 1.0, edge=FRAME)
    drawn = [
        part
        for patch in _patches(layer)
        for part in _patch(patch, box, rows=layer.rows, columns=layer.columns)
    ]
    frame = box.svg("none", 1.0, edge=FRAME)
    return [field, *drawn, frame]


def _patch(patch: Patch, box: _Box, *, rows: int, columns: int) -> list[str]:
    colour = COLOURS[patch.tone]
    pieces = [
        box.part(left / columns, top / rows, wide / columns, tall / rows).svg(
            colour, patch.opacity, edge=colour
        )
        for top, tall in _turns(patch.row_start, patch.row_count, rows)
        for left, wide in _turns(patch.column_start, patch.column_count, columns)
    ]
    return [_group(patch.title, pieces)] if patch.title else pieces


def _turns(start: int, count: int, length: int) -> list[tuple[int, int]]:
    """The (start, count) of what lies before the border, and of what wraps around it."""
    here = min(count, length - start)
    return [(start, here)] if here == count else [(start, here), (0, count - here)]


def _sentence(layer: LayerSpec) -> str:
    size = layer_cost(layer, "parameters")
    return (
        f"{layer.name}: {layer.structure.in_words()}; {size:,} of {layer.rows * layer.columns:,} "
        f"numbers, {layer_cost(layer, 'macs'):,} MACs a sample"
    )


def _heading(network: NetworkSpec, layers: Sequence[LayerSpec]) -> str:
    cost = sum(layer_cost(layer, "macs") for layer in layers)
    dense = sum(dense_cost(layer, "macs") for layer in layers)
    share = f"{cost:,} of {dense:,} MACs a sample, {_percent(cost / max(dense, 1))} of dense"
    plural = "layer" if len(layers) == 1 else "layers"
    title = f"{network.model.kind} network, {len(layers)} searched {plural}"
    return _text(title, MARGIN, MARGIN + 8, size=16, weight=700) + _text(
        share, MARGIN, MARGIN + 28, size=12
    )


def _legend(layers: Sequence[LayerSpec]) -> str:
    x, parts = MARGIN, []
    for name, colour in COLOURS.items():
        if any(name in _tones(layer) for layer in layers):
            parts.append(_Box(x, MARGIN + 41, 11.0, 11.0).svg(colour, 0.75))
            parts.append(_text(name, x + 17, MARGIN + 51, size=11, ink=FAINT))
            x += 36 + 6.4 * len(name)
    return "".join(parts)


def _tones(layer: LayerSpec) -> set[Tone]:
    return {patch.tone for patch in _patches(layer)}


def _patches(layer: LayerSpec) -> list[Patch]:
    rows, columns = layer.rows, layer.columns
    patches = list(islice(layer.structure.patches(rows=rows, columns=columns), MOST_PATCHES + 1))
    if len(patches) <= MOST_PATCHES:
        return patches
    return [whole(rows=rows, columns=columns, tone=patches[-1].tone, opacity=0.5)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _text(text: str, x: float, y: float, *, size: int, weight: int = 400, ink: str = INK) -> str:
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size}" font-weight="{weight}" '
        f'fill="{ink}">{escape(text)}</text>'
    )


def _rule(start: float, y: float, end: float) -> str:
    return f'<path d="M{start:.2f} {y:.2f}H{end:.2f}" stroke="{FRAME}" stroke-width="0.8"/>'


def _group(title: str, parts: Sequence[str]) -> str:
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


def _page(title: str, parts: Sequence[str], *, width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" '
        f'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">'
        f"<title>{escape(title)}</title>"
        f"{_Box(0.0, 0.0, width, height).svg(PAPER, 1.0)}{''.join(parts)}</svg>\n"
    )
