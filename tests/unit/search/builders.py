"""Small searches, layers and listeners that the tests of `search` are built from."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.networks.build import build_network
from models.spec import LayerSpec, Mlp, dense_network
from models.structured.build import build_layer
from models.structures import BlockDiagonal, LowRank, Structure, Sum
from search.alternatives import grows_by_ranks
from search.data import Data
from search.plan import PlannedTrial, TrialState
from search.progress import Update
from search.relaxation import RelaxedLinear
from search.spec import DATASET_TASKS, LearnerSettings, SearchSpec
from search.trial import FinishedTrial

ARTIFACT = "art_" + "0" * 32


def tiny(**changes: Any) -> SearchSpec:
    """Digits through a perceptron so small that a whole search takes seconds."""
    fields: dict[str, Any] = {
        "model": Mlp(hidden=(16, 12)),
        "dataset": "digits",
        "budget": {"ratio": 0.4},
        "compute": {"trials": 2, "epochs": 2, "reference_epochs": 2},
        "training": {"learning_rate": 0.01},
    }
    return SearchSpec.model_validate(fields | changes)


def matrix_spec(**changes: Any) -> SearchSpec:
    """The search of one uploaded matrix."""
    fields: dict[str, Any] = {
        "model": {"kind": "matrix", "artifact": ARTIFACT},
        "budget": {"ratio": 0.5},
        "compute": {"trials": 2, "epochs": 2},
        "training": {"learning_rate": 0.02, "distillation": 0},
    }
    return SearchSpec.model_validate(fields | changes)


def text_spec(**changes: Any) -> SearchSpec:
    """A text through a transformer as small."""
    fields: dict[str, Any] = {
        "model": {"kind": "gpt", "context": 16, "width": 16, "depth": 1, "heads": 2},
        "dataset": "state-of-the-union",
        "training": {"learning_rate": 0.01, "batch": 16, "samples": 192},
    }
    return tiny(**(fields | changes))


def mixer_spec(**changes: Any) -> SearchSpec:
    """Digits through a mixer as small."""
    model = {"kind": "mixer", "patch": 2, "width": 16, "depth": 1, "token_hidden": 12}
    return tiny(**({"model": model} | changes))


def fetched_text(folder: Path) -> Path:
    """A folder of fetched data, with some 40,000 characters that a package carries as addresses."""
    place = folder / "fetched"
    if not place.exists():
        (place / "state-of-the-union").mkdir(parents=True)
        pages = [page for page in files("sklearn.datasets.descr").iterdir() if ".rst" in page.name]
        for year, page in enumerate(sorted(pages, key=lambda page: page.name), 1790):
            text = page.read_text(encoding="utf-8")
            (place / "state-of-the-union" / f"{year}.txt").write_text(text, encoding="utf-8")
    return place


def upload(folder: Path, weight: Tensor) -> None:
    """Put a matrix where a worker finds the artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight.contiguous()}, folder / ARTIFACT)


def mixed_matrix() -> Tensor:
    """24 x 16: low rank, and one block that low rank alone does not express."""
    noise = torch.Generator().manual_seed(3)
    weight = torch.randn(24, 2, generator=noise) @ torch.randn(2, 16, generator=noise)
    weight[4:12, 3:11] += torch.randn(8, 8, generator=noise)
    return weight


def relaxed(
    rows: int,
    columns: int,
    *,
    groups: int,
    group: int = 1,
    tokens: int = 1,
    seed: int = 0,
    beside: bool = False,
) -> RelaxedLinear:
    """A relaxed layer with everything in it drawn at random, supports and saliencies included.

    With `beside`, two diagonal blocks stand beside the rectangles of a matrix that is large enough.
    """
    noise = torch.Generator().manual_seed(seed)
    terms = groups * group
    layer = RelaxedLinear(
        LayerSpec(name=f"layer{seed}", rows=rows, columns=columns, tokens=tokens),
        torch.randn(rows, terms, generator=noise),
        torch.randn(terms, columns, generator=noise),
        torch.randn(rows, generator=noise),
        group=group,
        **(_beside(rows, columns, noise) if beside else {}),
    )
    saliencies = [layer.row_saliency, layer.column_saliency, layer.whole_saliency]
    if layer.beside is not None:
        saliencies.append(layer.alternative_saliency)
    for saliency in saliencies:
        saliency.copy_(torch.rand(saliency.shape, generator=noise))
    layer.set_rectangles(
        _sides(groups, rows, noise),
        _sides(groups, columns, noise),
    )
    return layer


def _beside(rows: int, columns: int, noise: torch.Generator) -> dict[str, Any]:
    blocks, sides = BlockDiagonal(blocks=2), {"rows": rows, "columns": columns}
    if not grows_by_ranks(blocks, **sides):
        return {}
    layer = build_layer(blocks, rows=rows, columns=columns, bias=False, generator=noise)
    return {"alternative": layer, "alternative_size": blocks.mac_count(**sides)}


def _sides(groups: int, length: int, noise: torch.Generator) -> Tensor:
    """Starts anywhere, so that some wrap around; a third are full, and some are dead."""
    start = torch.randint(length, (groups,), generator=noise)
    count = torch.randint(length + 1, (groups,), generator=noise)
    full = torch.rand(groups, generator=noise) < 1 / 3
    return torch.stack([start, torch.where(full, length, count)], -1)


def finished(
    number: int,
    *,
    loss: float | None = 1.0,
    state: TrialState = "COMPLETE",
    settings: LearnerSettings | None = None,
    curve: tuple[tuple[int, float], ...] = (),
    repeat: int = 0,
) -> FinishedTrial:
    """A candidate that has ended."""
    planned = PlannedTrial(number, "candidate", None, repeat)
    return FinishedTrial(planned, state, settings or LearnerSettings(), loss, curve, None)


def part(data: Data, samples: int) -> Data:
    """The first samples of every split, without the shifted copies."""
    return Data(
        task=data.task,
        variants=1,
        train=type(data.train)(data.train.inputs[:samples], data.train.targets[:samples]),
        validation=data.validation,
        test=data.test,
    )


class Listener:
    """Progress that keeps what it hears, and asks to stop after so many questions."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.updates: list[Update] = []
        self.stop_after = stop_after
        self.asked = 0

    def report(self, update: Update) -> None:
        self.updates.append(update)

    def should_stop(self) -> bool:
        self.asked += 1
        return self.stop_after is not None and self.asked > self.stop_after


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def structured_mlp() -> nn.Module:
    dense = dense_network(Mlp(hidden=(16, 12, 8)), DATASET_TASKS["digits"])
    structures: dict[str, Structure] = {
        "layers.1": LowRank(rank=3),
        "layers.2": Sum(parts=(LowRank(rank=1), BlockDiagonal(blocks=2))),
    }
    return build_network(dense.with_structures(structures), generator=generator())


def images() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=generator())
