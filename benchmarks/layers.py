"""Our layers beside what a user would install instead: speed, memory, projection error and time.

`python -m benchmarks.layers [--quick]` prints one JSON line. The rivals are tensorly-torch's
factorised layers, PyTorch's block-sparse matrices and a plain truncated SVD. All get the same share
of the same matrix: rivals of its parameters, ours of its MACs, so as many numbers or fewer. The
line also has the seconds that all error curves of one matrix take.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import tltorch
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.machine import machine
from benchmarks.memory import working_bytes
from benchmarks.sizes import CURVES, NAMES, chosen
from benchmarks.timing import Call, ratio, rounds_of
from models.structured.build import project
from models.structured.curves import error_curve
from models.structures import Structure
from models.structures.sizes import Kind

SHAPES = ((768, 768), (768, 3072))
TOKENS = (1, 64, 1576)
SHARE = 0.3
TILE = 32
# Gradient fits without a closed form take minutes at these sizes.
FITTED_SLOWLY = {"butterfly gadget", "Toeplitz-like"}
# What tensorly-torch factorises the sides into.
FACTORS = {768: (8, 8, 12), 3072: (12, 16, 16)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A product, the matrix it stands for, the numbers it stores, and how long it took to make."""

    call: Callable[[Tensor], Tensor]
    dense: Tensor
    parameters: int
    seconds: float


def with_spectrum(rows: int, columns: int, *, generator: torch.Generator) -> Tensor:
    """A matrix with singular values i^-1/2 and random singular vectors."""
    smaller = min(rows, columns)
    left, right = (
        torch.linalg.qr(torch.randn(side, smaller, generator=generator, dtype=torch.float64))[0]
        for side in (rows, columns)
    )
    values = torch.arange(1, smaller + 1, dtype=torch.float64) ** -0.5
    matrix: Tensor = (left * values) @ right.T
    return matrix.float()


def ours(name: Kind, weight: Tensor, parameters: int) -> Candidate | None:
    """One of our structures, projected."""
    started = time.perf_counter()
    structure: Structure | None = chosen(name, weight, parameters)
    if structure is None:
        return None
    layer = project(weight, structure)
    seconds = time.perf_counter() - started
    count = structure.parameter_count(rows=len(weight), columns=weight.shape[1])
    return Candidate(layer, layer.to_dense().detach(), count, seconds)


def tensorly_torch(kind: str, weight: Tensor, parameters: int) -> Candidate:
    """tensorly-torch's factorised linear layer of this kind, in its factorised implementation."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    started = time.perf_counter()
    layer = tltorch.FactorizedLinear.from_linear(
        linear,
        rank=parameters / prod(weight.shape),
        auto_tensorize=False,
        in_tensorized_features=FACTORS[columns],
        out_tensorized_features=FACTORS[rows],
        bias=False,
        factorization=kind,
        implementation="factorized",
    )
    seconds = time.perf_counter() - started
    with torch.no_grad():
        dense = layer(torch.eye(columns)).T.contiguous()
    count = sum(parameter.numel() for parameter in layer.parameters())
    return Candidate(layer, dense, count, seconds)


def block_sparse_of_torch(weight: Tensor, parameters: int) -> Candidate:
    """PyTorch's BSR matrix with the tiles of largest energy."""
    started = time.perf_counter()
    energies = functional.avg_pool2d(weight.square()[None], TILE)[0]
    kept = energies.flatten().topk(parameters // TILE**2).indices
    mask = torch.zeros_like(energies).flatten().index_fill(0, kept, 1).view_as(energies)
    cropped = weight * mask.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "BSR support is in beta state"
        sparse = cropped.to_sparse_bsr((TILE, TILE))
    seconds = time.perf_counter() - started
    return Candidate(lambda x: functional.linear(x, sparse), cropped, len(kept) * TILE**2, seconds)


def plain_low_rank(weight: Tensor, parameters: int) -> Candidate:
    """Two linear layers made from a truncated SVD, as anyone would write them."""
    started = time.perf_counter()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = parameters // sum(weight.shape)
    rows, columns = weight.shape
    layer = nn.Sequential(nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias=False))
    with torch.no_grad():
        for own, factor in zip(layer.parameters(), (right[:rank], left[:, :rank]), strict=True):
            own.copy_(factor)
        next(layer.parameters()).mul_(values[:rank, None])
    seconds = time.perf_counter() - started
    dense = (left[:, :rank] * values[:rank]) @ right[:rank]
    return Candidate(layer, dense, rank * (rows + columns), seconds)


# Not its CP: alternating least squares at the 3,160 terms of this share did not end in minutes.
RIVALS: Mapping[str, Callable[[Tensor, int], Candidate]] = {
    "plain SVD": plain_low_rank,
    "PyTorch BSR": block_sparse_of_torch,
    "tensorly-torch Tucker": lambda weight, count: tensorly_torch("tucker", weight, count),
    "tensorly-torch block TT": lambda weight, count: tensorly_torch("blocktt", weight, count),
}


def compared(rows: int, columns: int, *, seconds: float) -> Iterator[dict[str, object]]:
    """Make every layer of one matrix, and measure them side by side."""
    generator = torch.Generator().manual_seed(0)
    weight = with_spectrum(rows, columns, generator=generator)
    count = int(SHARE * rows * columns)
    made: dict[str, Candidate] = {}
    for kind in (kind for kind in NAMES if kind not in FITTED_SLOWLY):
        found = ours(kind, weight, count)
        if found is not None:
            made[kind] = found
    made |= {name: make(weight, count) for name, make in RIVALS.items()}
    with torch.no_grad():  # PyTorch's BSR fails in inference mode
        inputs = {tokens: torch.randn(tokens, columns, generator=generator) for tokens in TOKENS}
        times = {
            tokens: rounds_of(
                {"dense": _call(lambda y: functional.linear(y, weight), x)}
                | {name: _call(one.call, x) for name, one in made.items()},
                seconds=seconds,
            )
            for tokens, x in inputs.items()
        }
        for name, one in made.items():
            yield {
                "rows": rows,
                "columns": columns,
                "layer": name,
                "rival": name in RIVALS,
                "parameters": one.parameters,
                "bytes": 4 * one.parameters,
                "working_bytes": working_bytes(_call(one.call, inputs[1576])),
                "projection_error": float((weight - one.dense).norm() / weight.norm()),
                "projection_seconds": round(one.seconds, 3),
                "time_over_dense": {
                    tokens: ratio(times[tokens], name, "dense") for tokens in TOKENS
                },
            }


def curve_seconds(rows: int, columns: int) -> dict[str, dict[str, float]]:
    """Seconds for the curve of all sizes of each structure that has one, without and with C."""
    generator = torch.Generator().manual_seed(0)
    weight = with_spectrum(rows, columns, generator=generator)
    inputs = torch.randn(2 * columns, columns, generator=generator)
    inputs *= torch.linspace(0.1, 2, columns)
    moment = inputs.T @ inputs / len(inputs)
    found: dict[str, dict[str, float]] = {}
    for title, given in (("plain", None), ("data-aware", moment)):
        seconds = found[title] = {}
        for name in CURVES:
            started = time.perf_counter()
            error_curve(name, weight, given)
            seconds[name] = round(time.perf_counter() - started, 3)
        seconds["all"] = round(sum(seconds.values()), 3)
    return found


def _call(product: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    return lambda: product(x)


def main() -> None:
    """Compare all layers, or with --quick those of the square matrix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="768 x 768 alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each batch size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shapes, seconds = (SHAPES[:1], 4.0) if options.quick else (SHAPES, options.seconds)
    found = [row for rows, columns in shapes for row in compared(rows, columns, seconds=seconds)]
    curves = {f"{rows} x {columns}": curve_seconds(rows, columns) for rows, columns in shapes}
    line = {"benchmark": "layers", "share": SHARE, **machine(), "error_curve_seconds": curves}
    print(json.dumps(line | {"results": found}))


if __name__ == "__main__":
    main()
