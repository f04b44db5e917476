"""What it takes to learn of a reference's layers what a search must know, before any candidate.

`python -m benchmarks.profile [--quick]` prints one JSON line: seconds of the clock and of the
processors. `whole` is what a search's first trial does once its network is trained: statistics,
sensitivities, menus, files, and an allocation. After it each part is measured by itself, and the
menus kind by kind in layers of one shape. The network is untrained: that takes as long.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.machine import machine
from models.networks.build import build_network
from search.data import image_data
from search.menu_making import make_menu
from search.profile import (
    CALIBRATION,
    Profile,
    output_curvatures,
    profile,
    save_profile,
    second_moments,
)
from search.progress import Silent
from search.resolved import ResolvedSearch, resolve
from search.spec import ImageDataset, SearchSpec

DATASET: ImageDataset = "mnist-5k"
NETWORK = {"kind": "vit", "patch": 7, "width": 128, "depth": 6, "heads": 4}
QUICK = {"kind": "vit", "patch": 14, "width": 16, "depth": 1, "heads": 2}
SHARE = 0.3

Seconds = dict[str, float]


@contextmanager
def timed(spent: dict[str, Seconds], name: str) -> Iterator[None]:
    """Write down what happens inside, by the clock and by all threads' processors."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    spent[name] = {
        "seconds": round(time.perf_counter() - clock, 3),
        "cpu_seconds": round(time.process_time() - processor, 3),
    }


def measure(model: Mapping[str, object]) -> dict[str, object]:
    """Profile one network with the default kinds, as a whole and in parts."""
    asked = {"model": model, "dataset": DATASET, "budget": {"ratio": SHARE}}
    resolved = resolve(SearchSpec.model_validate(asked))
    data = image_data(DATASET, seed=0)
    network = build_network(resolved.network, generator=torch.Generator().manual_seed(0))
    names = [layer.name for layer in resolved.layers]
    inputs = data.calibration(CALIBRATION).inputs
    spent: dict[str, Seconds] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept"
        with timed(spent, "whole"):
            found = profile(network, data, resolved, Silent(), kept=kept)
            menus = (resolved, resolved.budgets, Silent())
            found = replace(found, menu=make_menu(found, *menus, kept=kept / "menu.json"))
            save_profile(Path(folder) / "profile.safetensors", found)
            found.menu.allocate(resolved, resolved.budget)
        with timed(spent, "second moments"):
            second_moments(network, names, inputs)
        with timed(spent, "curvatures"):
            output_curvatures(network, names, inputs)
        (kept / "rises.json").unlink()
        with timed(spent, "sensitivities"):
            profile(network, data, resolved, Silent(), kept=kept)
        with timed(spent, "menus"):
            make_menu(_afresh(found), *menus, kept=Path(folder) / "fits.json")
        with timed(spent, "allocation"):
            found.menu.allocate(resolved, resolved.budget)
    return {
        "layers": len(found.layers),
        "items": sum(len(one.items) for one in found.menu.layers),
        "parts": spent,
        "menus_of": {
            kind: _by_shape(found, resolved.model_copy(update={"structures": (kind,)}))
            for kind in resolved.structures
        },
    }


def _by_shape(found: Profile, resolved: ResolvedSearch) -> dict[str, Seconds]:
    """Make the menus of one kind, for all layers of a shape after those of another."""
    spent: dict[str, Seconds] = {}
    shapes = {p.weight.shape for p in found.layers}
    for shape in sorted(shapes):
        some = tuple(p for p in found.layers if p.weight.shape == shape)
        with tempfile.TemporaryDirectory() as folder:
            part = _afresh(replace(found, layers=some))
            with timed(spent, f"{len(some)} of {shape[0]} x {shape[1]}"):
                kept = Path(folder) / "fits.json"
                make_menu(part, resolved, resolved.budgets, Silent(), kept=kept)
    return spent


def _afresh(found: Profile) -> Profile:
    """Copy what others know by its second moment, so that nothing of it is known."""
    layers = (replace(p, second_moment=p.second_moment.clone()) for p in found.layers)
    return replace(found, layers=tuple(layers))


def main() -> None:
    """Profile the six-layer transformer, or with --quick a tiny one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one layer, 16 wide")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = QUICK if options.quick else NETWORK
    found = measure(model)
    print(json.dumps({"benchmark": "profile", **machine(), "model": model, **found}))


if __name__ == "__main__":
    main()
