"""Drawings of networks and structures."""

import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest

from models.drawing import draw, draw_structure
from models.spec import (
    ImageTask,
    LayerSpec,
    Matrix,
    MatrixTask,
    NetworkSpec,
    Vit,
    dense_network,
)
from models.structures import BlockDiagonal, Btt, Dense, Gblr, LowRank, Rectangle, Structure

WRAPPED = Rectangle(row_start=12, row_count=8, column_start=13, column_count=9, rank=2)
TILE = Rectangle(row_start=3, row_count=4, column_start=2, column_count=4, rank=3)
STRUCTURES: list[Structure] = [
    Dense(),
    LowRank(rank=3),
    BlockDiagonal(blocks=3),
    Gblr(rectangles=(WRAPPED, TILE)),
    Gblr(rectangles=()),
]
SVG = "{http://www.w3.org/2000/svg}"


def transformer() -> NetworkSpec:
    task = ImageTask(channels=1, height=8, width=8, classes=10)
    return dense_network(Vit(patch=4, width=16, depth=2, heads=2), task).with_structures(
        {
            "blocks.0.qkv": LowRank(rank=3),
            "blocks.0.proj": STRUCTURES[3],
            "blocks.1.up": BlockDiagonal(blocks=3),
        }
    )


def titles(svg: str) -> list[str]:
    return [title.text or "" for title in ET.fromstring(svg).iter(f"{SVG}title")]


def test_every_eligible_layer_and_no_other_is_named() -> None:
    network = transformer()
    eligible = [layer.name for layer in network.layers if layer.name.startswith("blocks")]
    found = [title.partition(":")[0] for title in titles(draw(network, eligible))]
    assert [name for name in found if "." in name] == eligible


def test_a_panel_says_what_it_costs() -> None:
    svg = draw(transformer(), ["blocks.0.qkv"])
    assert "blocks.0.qkv: low rank, 3; 192 of 768 numbers, 768 MACs a sample" in titles(svg)
    assert "25.0 %" in svg


def test_a_wrapped_rectangle_is_drawn_in_four_parts_and_explained() -> None:
    svg = draw_structure(Gblr(rectangles=(WRAPPED,)), rows=16, columns=16)
    (group,) = ET.fromstring(svg).iter(f"{SVG}g")
    assert len(list(group.iter(f"{SVG}rect"))) == 4
    assert "rank 2: 8 rows from 12, 9 columns from 13, 34 numbers" in titles(svg)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 3000), (3000, 22)])
def test_everything_stays_on_the_page(structure: Structure, rows: int, columns: int) -> None:
    page = ET.fromstring(draw_structure(structure, rows=rows, columns=columns))
    width, height = float(page.attrib["width"]), float(page.attrib["height"])
    assert max(width, height) < 260
    for shape in page.iter(f"{SVG}rect"):
        x, y, w, h = (float(shape.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 1.5
        assert y + h <= height + 1.5


def test_a_drawing_is_the_same_every_time() -> None:
    network = transformer()
    eligible = [layer.name for layer in network.layers]
    assert draw(network, eligible) == draw(network, list(reversed(eligible)))


def test_names_are_escaped() -> None:
    task = MatrixTask(rows=4, columns=4)
    layer = LayerSpec(name='<b>&".x', rows=4, columns=4)
    network = NetworkSpec(model=Matrix(artifact="a"), task=task, layers=(layer,))
    assert any(title.startswith('<b>&".x') for title in titles(draw(network, [layer.name])))


def test_nothing_eligible_is_an_empty_page() -> None:
    assert "0 searched layers" in draw(transformer(), [])


def test_no_number_is_left_unrounded() -> None:
    svg = draw(transformer(), [layer.name for layer in transformer().layers])
    assert not re.search(r"\d\.\d{4,}", svg)


def test_drawing_needs_no_torch() -> None:
    script = "import sys, models.drawing; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_structure_of_millions_of_pieces_is_drawn_as_a_whole() -> None:
    finest = Btt(input_blocks=1500, output_blocks=1500)
    page = ET.fromstring(draw_structure(finest, rows=3000, columns=3000))
    assert len(list(page.iter(f"{SVG}rect"))) < 10
