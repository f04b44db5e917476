"""How long each structure takes beside the dense layer and low rank, as it is and as deployed.

`python -m benchmarks.latency [--quick]` prints one JSON line.
"""

import argparse
import itertools
import json
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.machine import machine
from benchmarks.sizes import NAMES
from benchmarks.timing import Call, ratio, rounds_of
from models.deployment import deploy
from models.structured.base import StructuredLinear
from models.structured.build import build_layer
from models.structures import Dense, Structure
from models.structures.sizes import largest_within

SHAPES = ((768, 768), (768, 3072))
TOKENS = (1, 64, 1576)
SHARES = (0.15, 0.3, 0.5)
DTYPES = (torch.float32, torch.bfloat16)


def cell(
    *, rows: int, columns: int, share: float, tokens: int, dtype: torch.dtype, seconds: float
) -> Iterator[dict[str, object]]:
    """Time every structure of one size, in pairs with the dense layer and low rank."""
    generator = torch.Generator().manual_seed(0)
    macs = int(share * rows * columns)
    x = torch.randn(tokens, columns, generator=generator).to(dtype)

    def built(structure: Structure) -> StructuredLinear:
        layer = build_layer(structure, rows=rows, columns=columns, generator=generator)
        return layer.to(dtype).eval()

    layers: dict[str, StructuredLinear] = {
        name: built(structure)
        for name in NAMES
        if (structure := largest_within(name, rows=rows, columns=columns, budget=macs)) is not None
    }
    dense = built(Dense())
    calls: dict[str, Call] = {"dense": lambda: dense(x)}
    calls |= {name: _call(layer, x) for name, layer in layers.items()}
    deployed = {
        name: deploy(layer, tokens=tokens, generator=generator) for name, layer in layers.items()
    }
    calls |= {f"{name}, deployed": _call(one.layer, x) for name, one in deployed.items()}
    times = rounds_of(calls, seconds=seconds)
    for name, layer in layers.items():
        spec = layer.spec
        yield {
            "rows": rows,
            "columns": columns,
            "tokens": tokens,
            "dtype": str(dtype).removeprefix("torch."),
            "share": share,
            "structure": name,
            "in_words": spec.in_words(),
            "macs": spec.mac_count(rows=rows, columns=columns),
            "parameters": spec.parameter_count(rows=rows, columns=columns),
            "time_over_dense": ratio(times, name, "dense"),
            "time_over_low_rank": ratio(times, name, "low rank"),
            "deployed_form": deployed[name].form,
            "deployed_over_dense": ratio(times, f"{name}, deployed", "dense"),
        }


def _call(module: nn.Module, x: torch.Tensor) -> Call:
    return lambda: module(x)


def main() -> None:
    """Measure all cells, or with --quick the one that matters most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="768 x 768, .3 of the MACs, float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=12.0, help="for each cell")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    first = 1 if options.quick else None
    shares = (0.3,) if options.quick else SHARES
    cells = itertools.product(SHAPES[:first], shares, TOKENS, DTYPES[:first])
    found: list[dict[str, object]] = []
    with torch.inference_mode():
        for (rows, columns), share, count, dtype in cells:
            found += cell(
                rows=rows,
                columns=columns,
                share=share,
                tokens=count,
                dtype=dtype,
                seconds=3.0 if options.quick else options.seconds,
            )
    print(json.dumps({"benchmark": "latency", **machine(), "results": found}))


if __name__ == "__main__":
    main()
