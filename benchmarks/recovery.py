"""What a search makes of planted matrices, beside the best single structure at the same cost.

`python -m benchmarks.recovery [--quick]` prints one JSON line. The search gets the matrix alone,
through `run_search`; every kind of structure is its rival, fitted from three starts to convergence.
What was measured is kept in `--home`, so that an interrupted run goes on where it was.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.machine import machine
from models.checkpoint import load_network
from models.spec import LayerSpec
from models.structured.base import StructuredLinear
from models.structured.block_sparse import BlockSparseLinear
from models.structured.build import build_layer, project
from models.structured.curves import error_curve
from models.structured.descent import descend
from models.structures import (
    BlockDiagonal,
    BlockSparse,
    Btt,
    Diagonals,
    Gblr,
    LowRank,
    Rectangle,
    Structure,
    Sum,
    ToeplitzLike,
)
from models.structures.sizes import CLOSED_KINDS, KINDS, Kind, kronecker, largest_within
from search.progress import Silent
from search.run import run_search
from search.spec import SearchSpec

ARTIFACT = "art_" + "0" * 32
SIZES = (128, 256)
RESTARTS, STEPS = 3, 1000
FACTOR, ENOUGH = 1.02, 1e-3  # of the best rival's error, or of the matrix: what a search may leave
SHARES = (0.6, 1.0, 1.5)  # of what the planted structure costs
GAUSSIAN_SHARES = (0.1, 0.2, 0.4)  # of dense
MIXED = ("block diagonal + low rank", "overlapping rectangles", "banded + sparse")


def tiles(size: int, tile: int, count: int) -> BlockSparse:
    """So many tiles anywhere."""
    across = size // tile
    places = torch.randperm(across**2, generator=torch.Generator().manual_seed(5))[:count]
    positions = tuple(divmod(place, across) for place in sorted(places.tolist()))
    return BlockSparse(tile=tile, positions=positions)


def overlapping(size: int) -> Gblr:
    """Five rectangles of uneven sides and ranks, two around the border."""
    sides = (
        (0.05, 0.4, 0.1, 0.7, 4),
        (0.3, 0.5, 0.02, 0.3, 6),
        (0.7, 0.55, 0.5, 0.35, 5),
        (0.15, 0.2, 0.6, 0.6, 3),
        (0.45, 0.35, 0.35, 0.3, 8),
    )
    return Gblr(
        rectangles=tuple(
            Rectangle(
                row_start=int(row * size),
                row_count=int(height * size),
                column_start=int(column * size),
                column_count=int(width * size),
                rank=rank,
            )
            for row, height, column, width, rank in sides
        )
    )


def planted(size: int) -> dict[str, Structure | None]:
    """What the matrices are made of; None for those that have no structure of their own."""
    block = 2 ** ((size.bit_length() - 1) // 2)
    return {
        "low rank": LowRank(rank=size // 16),
        "block diagonal + low rank": Sum(parts=(BlockDiagonal(blocks=8), LowRank(rank=size // 32))),
        "overlapping rectangles": overlapping(size),
        "block sparse": tiles(size, 16, max(1, (size // 16) ** 2 // 5)),
        "Monarch": Btt(input_blocks=block, output_blocks=block),
        "BTT, rank 2": Btt(input_blocks=4, output_blocks=4, rank=2),
        "Kronecker sum": kronecker(2, rows=size, columns=size),
        "Toeplitz": ToeplitzLike(rank=2),
        "Hadamard": None,
        "banded + sparse": Sum(
            parts=(
                Diagonals(offsets=tuple(range(-3, 4))),
                tiles(size, 8, max(1, (size // 8) ** 2 // 20)),
            )
        ),
        "Gaussian": None,
    }


@torch.no_grad()
def matrix(name: str, size: int) -> tuple[Tensor, int]:
    """The matrix, of unit mean square, and the MACs that its own structure takes."""
    generator = torch.Generator().manual_seed(7)
    structure = planted(size)[name]
    cost = size**2
    if name == "Hadamard":
        weight = torch.ones(1, 1)
        while len(weight) < size:
            weight = torch.cat([torch.cat([weight, weight], 1), torch.cat([weight, -weight], 1)], 0)
        cost = int(2 * size * math.log2(size))  # as a butterfly
    elif name == "Toeplitz":
        diagonals = torch.randn(2 * size - 1, generator=generator)
        places = torch.arange(size)[:, None] - torch.arange(size) + size - 1
        weight = diagonals[places]
        assert structure is not None
        cost = min(size**2 // 2, structure.mac_count(rows=size, columns=size))
    elif structure is None:
        weight = torch.randn(size, size, generator=generator)
    else:
        layer = build_layer(structure, rows=size, columns=size, bias=False, generator=generator)
        for part in layer.modules():
            if isinstance(part, BlockSparseLinear):
                part.reset_parameters(generator)
        weight = layer.to_dense()
        cost = structure.mac_count(rows=size, columns=size)
    return weight / weight.square().mean().sqrt(), cost


@dataclass(frozen=True, slots=True)
class Cell:
    """One matrix under one budget."""

    matrix: str
    size: int
    share: float

    @property
    def macs(self) -> int:
        """The budget: a share of the planted cost, and of dense for the Gaussian."""
        whole = matrix(self.matrix, self.size)[1]
        return min(int(self.share * whole), self.size**2 - 1)


def rivals(weight: Tensor, macs: int) -> dict[str, float]:
    """The relative squared error of every kind that fits: the best of converged restarts."""
    found: dict[str, float] = {}
    for kind in KINDS:
        member = _fitted(kind, weight, macs)
        if member is not None:
            found[kind] = member
    return found


def _fitted(kind: Kind, weight: Tensor, macs: int) -> float | None:
    structure: Structure | None
    side = len(weight)
    if kind in CLOSED_KINDS:
        curve = error_curve(kind, weight)
        fits = len(curve.macs) > 0 and int(curve.macs.min()) <= macs
        structure = curve.best_within(macs) if fits else None
    else:
        structure = largest_within(kind, rows=side, columns=side, budget=macs)
    if structure is None or structure.mac_count(rows=side, columns=side) > macs:
        return None
    errors: list[float] = []
    before = math.inf
    for seed in range(RESTARTS):
        layer = project(weight, structure, generator=torch.Generator().manual_seed(seed))
        start = _error(layer, weight)
        if start == before:  # nothing is drawn
            break
        before = start
        descend(layer, weight, steps=STEPS)
        errors.append(_error(layer, weight))
    return min(errors)


@torch.no_grad()
def _error(layer: StructuredLinear, weight: Tensor) -> float:
    rest = (weight - layer.to_dense()).double()
    return float(rest.square().sum() / weight.double().square().sum())


def measured(
    cell: Cell, home: Path, *, trials: int, epochs: int, threads: int
) -> dict[str, object]:
    """Search for one matrix, and fit its rivals."""
    weight, _ = matrix(cell.matrix, cell.size)
    place = home / f"{cell.matrix}-{cell.size}-{cell.share}"
    place.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight.contiguous()}, place / ARTIFACT)
    spec = SearchSpec.model_validate(
        {
            "model": {"kind": "matrix", "artifact": ARTIFACT},
            "budget": {"absolute": cell.macs},
            "compute": {"trials": trials, "epochs": epochs},
            "training": {"tuning_rate": 2e-3, "distillation": 0},
            "space": {"baselines": []},
        }
    )
    started = time.perf_counter()
    result = run_search(spec, folder=place, uploads=place, threads=threads, progress=Silent())
    seconds = time.perf_counter() - started
    tried = {
        number: outcome.metrics["validation_loss"]
        for number, outcome in result.outcomes.items()
        if number and outcome.metrics is not None
    }
    best = min(tried, key=tried.__getitem__)
    network = load_network(result.folders[best] / "export")
    layer = network.get_submodule("matrix")
    assert isinstance(layer, StructuredLinear)
    found: LayerSpec = LayerSpec(
        name="matrix", rows=cell.size, columns=cell.size, structure=layer.spec, bias=False
    )
    cost = found.structure.mac_count(rows=cell.size, columns=cell.size)
    assert cost <= cell.macs
    error, others = _error(layer, weight), rivals(weight, cell.macs)
    rival = min(others, key=others.__getitem__)
    return {
        **asdict(cell),
        "macs": cell.macs,
        "cost": cost,
        "found": found.structure.in_words(),
        "error": error,
        "candidates": tried,
        "rival": rival,
        "rival_error": others[rival],
        "within_bar": error <= max(FACTOR * others[rival], ENOUGH),
        "better": error < others[rival] or error < ENOUGH,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure every cell that is not known yet, and print them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small matrices, short")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--matrices", nargs="+", default=list(planted(SIZES[0])))
    parser.add_argument("--shares", nargs="+", type=float, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--home", type=Path, default=Path(".matnas/benchmarks/recovery"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    home: Path = options.home / ("quick" if options.quick else "full")
    home.mkdir(parents=True, exist_ok=True)
    kept = home / "measured.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["matrix"], row["size"], row["share"]) for row in rows}
    names = ["low rank", "block diagonal + low rank"] if options.quick else options.matrices
    run: Callable[[Cell], dict[str, object]] = lambda cell: measured(  # noqa: E731
        cell, home, trials=3, epochs=1 if options.quick else 8, threads=options.threads
    )
    for size in (64,) if options.quick else options.sizes:
        for name in names:
            usual = GAUSSIAN_SHARES if name == "Gaussian" else SHARES
            for share in options.shares or (usual[:1] if options.quick else usual):
                if (name, size, share) in done:
                    continue
                rows.append(run(Cell(name, size, share)))
                with kept.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(json.dumps({"benchmark": "recovery", **machine(), "rows": rows}))


if __name__ == "__main__":
    main()
