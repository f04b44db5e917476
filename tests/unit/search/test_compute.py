"""Device, precision and generated code: what they change in a training, and what they do not."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from models.networks.build import build_network
from models.structured.dense import DenseLinear
from search import candidate
from search.baselines import Built
from search.candidate import learn
from search.compute import DeviceMissing, Engine, find_device, moved
from search.plan import planned_trials
from search.profile import output_curvatures, second_moments
from search.progress import Silent
from search.recipe import Device
from search.relaxation import RelaxedLinear
from search.report import PLAIN, Execution
from search.run import run_search, run_trial
from search.settling import Settled
from search.spec import LearnerSettings
from search.training import Course, Problem, fit, weight_groups
from tests.unit.search.builders import tiny
from tests.unit.search.conftest import Trained

BFLOAT16 = Execution(precision="bfloat16")
META = torch.device("meta")
T = TypeVar("T")


def problem(trained: Trained, execution: Execution = PLAIN) -> Problem:
    engine = Engine(execution)
    return Problem(trained.data, trained.reference.answers, trained.spec.training, 0.01, 5, engine)


def learned(trained: Trained, folder: Path, execution: Execution = PLAIN, **settings: Any) -> Built:
    folder.mkdir(exist_ok=True)
    found = learn(
        Settled(trained.resolved, trained.reference.network, trained.reference.profile),
        LearnerSettings(**settings),
        Course(problem(trained, execution), 2, folder / "checkpoint", Silent()),
    )
    return found.spec, found.network


def check_same(one: Built, other: Built) -> None:
    assert one[0] == other[0]
    torch.testing.assert_close(one[1].state_dict(), other[1].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_torch_has_not_fails_the_trial_at_once(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    spec = tiny(compute={"device": device})
    outcome = run_trial(
        spec,
        planned_trials(spec)[0],
        (),
        settings=None,
        uploads=tmp_path,
        cache=tmp_path,
        folder=tmp_path / "trial",
        threads=1,
        progress=Silent(),
    )
    assert (outcome.state, outcome.reason) == ("FAILED", "device_missing")
    assert outcome.sentence.startswith(f"compute.device is {device}, but the worker's torch has no")


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda", rank=1, processes=2) == torch.device("cuda", 1)
    with pytest.raises(DeviceMissing, match=r"has 2 .* 3 processes .* at most 2"):
        find_device("cuda", processes=3)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(DeviceMissing, match=r"set compute\.processes to 1"):
        find_device("mps", processes=2)


def test_overlapping_windows_stay_views_of_as_few_numbers() -> None:
    text = torch.arange(100)
    windows = text[3:].unfold(0, 8, 1)
    found = moved(windows, META)
    assert (found.shape, found.stride()) == (windows.shape, windows.stride())
    assert found.untyped_storage().nbytes() == text[3:].nbytes
    assert moved(text, META).shape == text.shape
    assert moved(windows, torch.device("cpu")) is windows


@pytest.mark.parametrize("metric", ["curvature", "gradient", "uniform"])
def test_learning_makes_every_tensor_where_the_weights_are(
    trained: Trained, tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = learned(trained, tmp_path / "usual", metric=metric, group=2)

    def guarded(*arguments: Any, **named: Any) -> None:
        with META:  # what is made without saying where has no numbers
            fit(*arguments, **named)

    monkeypatch.setattr(candidate, "fit", guarded)
    check_same(usual, learned(trained, tmp_path / "guarded", metric=metric, group=2))


def test_training_and_profile_make_every_tensor_where_the_weights_are(
    trained: Trained, tmp_path: Path
) -> None:
    found = []
    names, inputs = [layer.name for layer in trained.resolved.layers], trained.data.train.inputs
    for place in (torch.device("cpu"), META):
        network = build_network(
            trained.resolved.network, generator=torch.Generator().manual_seed(1)
        )
        with place:
            fit(
                network,
                Course(problem(trained), 2, tmp_path / place.type, Silent()),
                weight_groups(network),
                phase="training",
            )
            moments = second_moments(network, names, inputs)
            curvatures = output_curvatures(network, names, inputs)
        found.append((network.state_dict(), moments, curvatures))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_in_bfloat16_only_the_products_are(trained: Trained, tmp_path: Path) -> None:
    network = build_network(trained.resolved.network, generator=torch.Generator().manual_seed(1))
    seen: list[tuple[bool, torch.dtype]] = []
    layer = network.get_submodule("layers.0")
    assert isinstance(layer, DenseLinear)
    layer.register_forward_hook(lambda one, _, out: seen.append((one.training, out.dtype)))
    chosen = problem(trained, BFLOAT16)
    gradients: list[torch.dtype] = []
    fit(
        network,
        Course(chosen, 1, tmp_path / "checkpoint", Silent()),
        weight_groups(network),
        phase="training",
        after_backward=lambda _: gradients.extend(
            p.grad.dtype for p in network.parameters() if p.grad is not None
        ),
    )
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16}
    assert {dtype for training, dtype in seen if not training} == {torch.float32}  # evaluation
    assert {p.dtype for p in network.parameters()} == set(gradients) == {torch.float32}
    batch = next(iter(chosen.batches(0)))
    assert chosen.loss(network, batch).dtype == torch.float32


def test_masks_and_saliencies_of_a_learning_in_bfloat16_are_in_float32(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: set[torch.dtype] = set()

    def watched(network: nn.Module, *arguments: Any, **named: Any) -> None:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            if isinstance(module, RelaxedLinear):
                dtypes.update({module.row_mask.dtype, module.column_mask.dtype})
                dtypes.update(buffer.dtype for buffer in module.buffers())

        for module in network.modules():
            module.register_forward_hook(watch)
        fit(network, *arguments, **named)

    monkeypatch.setattr(candidate, "fit", watched)
    _, network = learned(trained, tmp_path, BFLOAT16)
    assert dtypes == {torch.float32}
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_search_in_bfloat16_holds_the_budget_and_finds_the_same_twice(tmp_path: Path) -> None:
    spec = tiny(compute={"trials": 1, "epochs": 2, "reference_epochs": 2, "precision": "bfloat16"})
    reports = [
        run_search(spec, folder=tmp_path / name, threads=1).report for name in ("one", "two")
    ]
    assert reports[0].execution == BFLOAT16
    assert all(row.cost <= reports[0].budget for row in reports[0].candidates)
    assert reports[0].candidates[0].network == reports[1].candidates[0].network
    assert reports[0].winner.validation_loss == reports[1].winner.validation_loss


def warning(work: Callable[[], T]) -> T:
    """Do what warns: the compiler looks at gradients that are not kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let only the compiler's front half work, for the other takes a minute; list its graphs."""
    sizes: list[int] = []

    def backend(graph: Any, _example: Any) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    return sizes


def test_generated_code_learns_the_same_network(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = learned(trained, tmp_path / "usual")
    graphs = compiled_graphs(monkeypatch)
    compiled = Execution(compiled=True)
    check_same(usual, warning(lambda: learned(trained, tmp_path / "compiled", compiled)))
    assert 1 <= len(graphs) <= 2  # masks are given to it, whatever they are


def test_generated_code_is_used_in_training_alone(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = compiled_graphs(monkeypatch)
    found = []
    for execution in (PLAIN, Execution(compiled=True)):
        network = build_network(
            trained.resolved.network, generator=torch.Generator().manual_seed(1)
        )
        fit(
            network,
            Course(problem(trained, execution), 2, tmp_path / str(execution.compiled), Silent()),
            weight_groups(network),
            phase="training",
        )
        found.append(network.state_dict())
        assert len(graphs) == execution.compiled  # none for the validation's batches
    torch.testing.assert_close(*found, rtol=0, atol=0)
