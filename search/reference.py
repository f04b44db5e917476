"""The dense network that everything is measured against: trained once, kept between searches."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.checkpoint import load_network, load_tensors, save_network, save_tensors
from models.networks.build import build_network
from models.spec import ImageTask, Matrix, Task, TextTask
from search.compute import Engine
from search.data import VARIANTS, Data
from search.menu_making import make_menu
from search.pace import choose
from search.profile import (
    CALIBRATION,
    PROJECTIONS,
    RISE_SAMPLES,
    Profile,
    dense_layer,
    load_profile,
    profile,
    save_profile,
)
from search.progress import Progress
from search.report import PLAIN, Execution
from search.resolved import ResolvedSearch
from search.spec import SearchSpec
from search.training import CHECKPOINT, Course, Problem, answers, fit, weight_groups


@dataclass(frozen=True, slots=True)
class Reference:
    """The trained dense network, its answers on the training part, and its layers' profile."""

    network: nn.Module
    answers: Float[Tensor, "samples outputs"] | None
    profile: Profile
    task: Task

    @property
    def teacher(self) -> Float[Tensor, "samples outputs"] | nn.Module | None:
        """What others learn from: answers that were kept, or else the network, asked again."""
        return self.network if isinstance(self.task, TextTask) else self.answers


def make_reference(
    spec: SearchSpec,
    resolved: ResolvedSearch,
    data: Data,
    *,
    cache: Path,
    folder: Path,
    threads: int,
    progress: Progress,
    engine: Callable[[Execution], Engine] = Engine,
) -> nn.Module:
    """Train the dense network and profile its layers into `folder`; both may be in the cache.

    `engine` makes what trains in a given way, which is chosen first and kept in the folder too.
    """
    device = engine(Execution(device=spec.compute.device)).device
    execution = choose(
        spec,
        lambda: build_network(resolved.network, generator=torch.Generator().manual_seed(spec.seed)),
        _problem(spec, data, Engine(device=device)),
        cache=cache,
        folder=folder,
        threads=threads,
    )
    key = reference_key(spec, threads=threads, execution=execution)
    kept = cache / "references" / key
    if not kept.exists():
        chosen = engine(execution)
        network = train_reference(
            *(spec, resolved, data), engine=chosen, folder=folder, progress=progress
        )
        keeps_answers = isinstance(data.task, ImageTask)
        known = answers(network, data.train.inputs) if keeps_answers else None
        _keep(kept, resolved, network, known)
    network = load_network(kept).to(device)
    save_network(folder / "export", resolved.network, network)
    if (kept / "answers.safetensors").exists():
        shutil.copy2(kept / "answers.safetensors", folder / "answers.safetensors")
    profiles = cache / "profiles" / _profile_key(key, resolved)
    measured = profile(network, data, resolved, progress, kept=profiles)
    menu = make_menu(measured, resolved, resolved.budgets, progress, kept=profiles / "menu.json")
    measured = replace(measured, menu=menu)
    save_profile(folder / "profile.safetensors", measured)
    return network


def load_reference(folder: Path, resolved: ResolvedSearch) -> Reference:
    """Read what `make_reference` left in its folder."""
    network = load_network(folder / "export")
    known = folder / "answers.safetensors"
    return Reference(
        network=network,
        answers=load_tensors(known)[0]["answers"] if known.exists() else None,
        profile=load_profile(folder / "profile.safetensors", network, resolved),
        task=resolved.network.task,
    )


def reference_key(spec: SearchSpec, *, threads: int, execution: Execution = PLAIN) -> str:
    """Name a reference by all that its numbers depend on."""
    facts = spec.model_dump(
        mode="json",
        include={"model", "dataset", "training", "seed"},
        # What only says how a network is tuned towards it.
        exclude={"training": {"tuning_rate", "distillation"}},
    ) | {
        "epochs": spec.compute.reference_epochs,
        "execution": execution.model_dump(
            mode="json", include={"device", "precision", "compiled", "processes"}
        ),
        "variants": VARIANTS[spec.dataset] if spec.dataset else 1,
        "threads": threads,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _profile_key(reference: str, resolved: ResolvedSearch) -> str:
    """Name what is known of some layers of a reference, whatever the budget."""
    samples = [CALIBRATION, RISE_SAMPLES, PROJECTIONS]
    facts = [reference, resolved.eligible, samples]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def train_reference(
    spec: SearchSpec,
    resolved: ResolvedSearch,
    data: Data,
    *,
    engine: Engine,
    folder: Path,
    progress: Progress,
) -> nn.Module:
    """Train the dense network from scratch; a matrix is one as it is."""
    generator = torch.Generator().manual_seed(spec.seed)
    network = build_network(resolved.network, generator=generator).to(engine.device)
    if isinstance(spec.model, Matrix):
        with torch.no_grad():
            dense_layer(network, "matrix").weight.copy_(data.train.targets.T)
        return network
    course = Course(
        _problem(spec, data, engine),
        spec.compute.reference_epochs,
        folder / CHECKPOINT,
        progress,
    )
    fit(network, course, weight_groups(network), phase="training")
    return network


def _problem(spec: SearchSpec, data: Data, engine: Engine) -> Problem:
    return Problem(data, None, spec.training, spec.training.learning_rate, spec.seed, engine)


def _keep(kept: Path, resolved: ResolvedSearch, network: nn.Module, known: Tensor | None) -> None:
    """Write a cache entry under another name and rename it: it is there wholly or not at all."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".unfinished-"))
    save_network(unfinished, resolved.network, network)
    if known is not None:
        save_tensors(unfinished / "answers.safetensors", {"answers": known})
    try:
        os.replace(unfinished, kept)  # noqa: PTH105 - Path.replace says no more
    except OSError:
        if not kept.exists():
            raise
        shutil.rmtree(unfinished)  # another worker made the same reference meanwhile
