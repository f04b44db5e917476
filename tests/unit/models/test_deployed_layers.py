"""Deployment: which form of a layer is chosen, and that the network stays the same function."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.deployment import (
    Timer,
    Timing,
    deploy,
    deploy_network,
    seconds_taken,
    timing,
    with_forms,
)
from models.forms import ChosenForm, Form
from models.networks.build import build_network
from models.spec import ImageTask, Mlp, NetworkSpec, dense_network
from models.structured import DenseLinear, GblrLinear, LowRankLinear, StructuredLinear
from models.structured.build import build_layer
from models.structures import BlockDiagonal, Dense, Gblr, LowRank, Rectangle, Structure, Svdp

RECTANGLES = Gblr(
    rectangles=tuple(
        Rectangle(row_start=start, row_count=9, column_start=2 * start, column_count=7, rank=2)
        for start in (0, 10)
    )
)

THIN = Svdp(rank=5)


def form_of(layer: nn.Module) -> Form:
    match layer:
        case DenseLinear():
            return "dense"
        case GblrLinear():
            return layer.form
        case LowRankLinear():
            return "factors" if layer.spec.rank == THIN.rank else "packed"
        case _:
            return "structured"


def clock(seconds: Mapping[Form, float | Callable[[int], float]]) -> Timer:
    """A clock by which a pass takes what is said: of its form, or also of its number."""
    passes: dict[Form, int] = {}

    def timer(layer: nn.Module, inputs: Tensor) -> float:
        form = form_of(layer)
        passes[form] = passes.get(form, 0) + 1
        layer(inputs)
        said = seconds[form]
        return said if isinstance(said, float) else said(passes[form])

    return timer


def layer_of(structure: Structure, dtype: torch.dtype = torch.float32) -> StructuredLinear:
    layer = build_layer(
        structure, rows=20, columns=30, generator=torch.Generator().manual_seed(1), dtype=dtype
    )
    assert layer.bias is not None
    nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(2))
    return layer.eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fastest", ["packed", "sliced", "dense"])
def test_the_fastest_form_is_deployed_and_is_the_same_product(
    fastest: Form, dtype: torch.dtype
) -> None:
    layer = layer_of(RECTANGLES, dtype)
    seconds: dict[Form, float] = {"packed": 2.0, "sliced": 2.0, "dense": 2.0}
    found = deploy(layer, tokens=4, generator=generator(), timer=clock(seconds | {fastest: 1.0}))
    assert (found.form, form_of(found.layer)) == (fastest, fastest)
    measured = {"packed": 2.0, "sliced": 2.0} | ({} if fastest == "dense" else {fastest: 1.0})
    dense = 1.0 if fastest == "dense" else 2.0
    assert {form: timing.ratio for form, timing in found.timings.items()} == {
        form: taken / dense for form, taken in measured.items()
    }
    x = torch.randn(3, 2, 30).to(dtype)
    with torch.inference_mode():
        expected, actual = layer(x), found.layer(x)
    assert actual.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert found.layer is not layer
    assert not found.layer.training


def test_what_does_not_clearly_win_runs_dense() -> None:
    layer = layer_of(BlockDiagonal(blocks=2))
    tie = clock({"structured": 0.97, "dense": 1.0})
    assert deploy(layer, tokens=4, generator=generator(), timer=tie).form == "dense"
    # Faster by the median, but slower in a third of all pairs.
    unsure = clock({"structured": lambda number: 0.8 if number % 3 else 1.2, "dense": 1.0})
    assert deploy(layer, tokens=4, generator=generator(), timer=unsure).form == "dense"
    sure = clock({"structured": lambda number: 0.8 if number % 9 else 1.2, "dense": 1.0})
    assert deploy(layer, tokens=4, generator=generator(), timer=sure).form == "structured"


def test_a_form_that_wins_by_a_disturbance_is_not_deployed() -> None:
    layer = layer_of(BlockDiagonal(blocks=2))
    # Something else ran during the 14 rounds of the first measurement, and slowed down dense alone.
    glitch = clock({"structured": 2.6, "dense": lambda number: 9.0 if number <= 14 else 1.0})
    found = deploy(layer, tokens=4, generator=generator(), timer=glitch)
    assert found.form == "dense"
    assert found.timings["structured"].ratio == 2.6
    tie = clock({"structured": lambda number: 0.5 if number <= 14 else 0.95, "dense": 1.0})
    assert deploy(layer, tokens=4, generator=generator(), timer=tie).form == "dense"


def test_only_the_form_that_won_is_measured_a_second_time() -> None:
    passes: list[Form] = []
    timer = clock({"structured": 0.6, "factors": 0.4, "dense": 1.0})

    def counted(layer: nn.Module, inputs: Tensor) -> float:
        passes.append(form_of(layer))
        return timer(layer, inputs)

    deploy(layer_of(THIN), tokens=4, generator=generator(), timer=counted)
    assert [passes.count(form) for form in ("structured", "factors", "dense")] == [14, 28, 28]
    passes.clear()
    timer = clock({"structured": 1.1, "dense": 1.0})
    deploy(layer_of(BlockDiagonal(blocks=2)), tokens=4, generator=generator(), timer=counted)
    assert [passes.count(form) for form in ("structured", "dense")] == [14, 14]


def test_one_disturbed_round_does_not_move_the_time_of_a_form_that_is_given_up() -> None:
    disturbed = clock({"structured": lambda number: 900.0 if number == 4 else 2.0, "dense": 1.0})
    found = deploy(
        layer_of(BlockDiagonal(blocks=2)), tokens=4, generator=generator(), timer=disturbed
    )
    assert found.timings["structured"] == Timing(2.0, (2.0, 900.0))
    assert timing([1.0, 5.0]) == Timing(3.0, (1.0, 5.0))


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "a", None, math.nan])
def test_what_is_no_number_of_inputs_is_refused_by_its_own_name(count: Any) -> None:
    layer, spec = layer_of(LowRank(rank=2)), network_spec()
    network = build_network(spec, generator=generator())
    for name, ask in (
        ("tokens", lambda: deploy(layer, tokens=count, generator=generator())),
        ("batch", lambda: deploy_network(network, spec, batch=count, generator=generator())),
    ):
        with pytest.raises(ValueError, match=f"^{name} is {count!r}, but a measurement admits "):
            ask()


def test_slow_first_passes_are_not_counted() -> None:
    slow = clock({"structured": lambda number: 100.0 if number <= 2 else 0.5, "dense": 1.0})
    found = deploy(layer_of(BlockDiagonal(blocks=2)), tokens=4, generator=generator(), timer=slow)
    assert found.timings["structured"].quartiles == (0.5, 0.5)


def test_a_spectral_layer_may_run_as_the_factors_that_it_makes() -> None:
    layer = layer_of(THIN)
    timer = clock({"structured": 0.6, "factors": 0.4, "dense": 1.0})
    found = deploy(layer, tokens=4, generator=generator(), timer=timer)
    assert found.form == "factors"
    x = torch.randn(3, 30)
    torch.testing.assert_close(found.layer(x), layer(x), rtol=1e-4, atol=1e-5)


def test_a_dense_layer_is_not_measured() -> None:
    layer = DenseLinear(rows=3, columns=4)
    found = deploy(layer, tokens=4, generator=generator(), timer=clock({}))
    assert (found.form, found.timings) == ("dense", {})
    assert found.layer is not layer


def test_what_cannot_be_measured_is_refused() -> None:
    layer = layer_of(LowRank(rank=2))
    with pytest.raises(ValueError, match="tokens is 0, but a measurement admits 1 and more"):
        deploy(layer, tokens=0, generator=generator(), timer=clock({}))
    with pytest.raises(ValueError, match=r"layer is a Linear, but .* admits a StructuredLinear"):
        deploy(nn.Linear(3, 4), tokens=1, generator=generator(), timer=clock({}))
    spec = network_spec()
    network = build_network(spec, generator=generator())
    with pytest.raises(ValueError, match="batch is -1, but a measurement admits 1 and more"):
        deploy_network(network, spec, batch=-1, generator=generator())
    with pytest.raises(ValueError, match=r"the network has no layer layers\.0"):
        deploy_network(nn.Linear(16, 5), spec, batch=1, generator=generator())
    dense: dict[str, Structure] = {layer.name: Dense() for layer in spec.layers}
    with pytest.raises(ValueError, match=r"layers\.0 of the network is 16 x 16, .*, but in spec"):
        deploy_network(network, spec.with_structures(dense), batch=1, generator=generator())
    with pytest.raises(TypeError, match="spec is a NoneType, but a network admits"):
        deploy_network(network, None, batch=1, generator=generator())  # type: ignore[arg-type]
    network.set_submodule("layers.0", nn.Linear(16, 16))
    with pytest.raises(ValueError, match=r"layers\.0 is a Linear, but"):
        deploy_network(network, spec, batch=1, generator=generator())


def test_more_terms_than_the_matrix_has_rows_are_never_packed() -> None:
    many = Gblr(rectangles=RECTANGLES.rectangles * 6)
    found = deploy(
        layer_of(many), tokens=4, generator=generator(), timer=clock({"sliced": 1.0, "dense": 2.0})
    )
    assert found.form == "sliced"


RECTANGLES_OF_16 = Gblr(
    rectangles=(
        Rectangle(row_start=9, row_count=9, column_start=12, column_count=7, rank=2),
        Rectangle(row_start=0, row_count=4, column_start=1, column_count=5, rank=1),
    )
)


def network_spec() -> NetworkSpec:
    task = ImageTask(channels=1, height=4, width=4, classes=5)
    dense = dense_network(Mlp(hidden=(16, 16, 16)), task)
    return dense.with_structures(
        {"layers.0": RECTANGLES_OF_16, "layers.1": LowRank(rank=2), "layers.2": LowRank(rank=2)}
    )


def test_a_network_is_copied_with_its_layers_deployed() -> None:
    spec = network_spec()
    network = build_network(spec, generator=generator()).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    timed: list[int] = []
    fake = clock({"packed": 3.0, "sliced": 1.0, "structured": 3.0, "dense": 2.0})

    def timer(layer: nn.Module, inputs: Tensor) -> float:
        timed.append(len(inputs))
        return 3.0 if isinstance(layer, LowRankLinear) else fake(layer, inputs)

    found = deploy_network(network, spec, batch=7, generator=generator(), timer=timer)
    assert found.forms == {"layers.0": "sliced", "layers.1": "dense", "layers.2": "dense"}
    assert [(one.use.tokens, one.form) for one in found.chosen] == [(7, "sliced"), (7, "dense")]
    assert set(timed) == {7}
    x = torch.randn(6, 1, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(found.network(x), network(x))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert isinstance(network.get_submodule("layers.1"), LowRankLinear)
    assert isinstance(found.network.get_submodule("layers.1"), DenseLinear)


def never(layer: nn.Module, inputs: Tensor) -> float:
    """A clock for what must not be measured."""
    raise AssertionError("measured again")


def test_what_was_chosen_is_not_measured_again() -> None:
    spec = network_spec()
    network = build_network(spec, generator=generator()).eval()
    ticks = clock({"packed": 3.0, "sliced": 1.0, "structured": 1.0, "dense": 2.0})
    first = deploy_network(network, spec, batch=7, generator=generator(), timer=ticks)
    # Through a file, and as numbers of another training: what is used alike is run alike.
    chosen = [ChosenForm.model_validate_json(one.model_dump_json()) for one in first.chosen]
    other = build_network(spec, generator=torch.Generator().manual_seed(5)).eval()
    again = deploy_network(other, spec, batch=7, generator=generator(), chosen=chosen, timer=never)
    assert (again.forms, again.chosen) == (first.forms, first.chosen)
    x = torch.randn(6, 1, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(again.network(x), other(x))


def test_a_form_that_is_not_admitted_any_more_is_chosen_anew() -> None:
    spec = network_spec()
    network = build_network(spec, generator=generator()).eval()
    ticks = clock({"packed": 3.0, "sliced": 1.0, "structured": 1.0, "dense": 2.0})
    first = deploy_network(network, spec, batch=7, generator=generator(), timer=ticks)
    of_others = [
        ChosenForm(use=one.use, form="structured" if one.form == "sliced" else "factors")
        for one in first.chosen
    ]
    again = deploy_network(
        network, spec, batch=7, generator=generator(), chosen=of_others, timer=ticks
    )
    assert (again.forms, again.chosen) == (first.forms, first.chosen)


@pytest.mark.parametrize(
    ("batch", "dtype", "changes"),
    [
        (8, torch.float32, {}),
        (7, torch.float64, {}),
        (7, torch.float32, {"layers.1": LowRank(rank=3), "layers.2": LowRank(rank=3)}),
    ],
    ids=["other tokens", "other dtype", "other structure"],
)
def test_another_use_of_a_layer_is_measured_anew(
    batch: int, dtype: torch.dtype, changes: dict[str, Structure]
) -> None:
    spec = network_spec()
    network = build_network(spec, generator=generator()).eval()
    ticks = clock({"packed": 1.0, "sliced": 1.0, "structured": 1.0, "dense": 2.0})
    first = deploy_network(network, spec, batch=7, generator=generator(), timer=ticks)
    changed = spec.with_structures(changes)
    other = build_network(changed, generator=generator()).eval().to(dtype)
    with pytest.raises(AssertionError, match="measured again"):
        deploy_network(
            other, changed, batch=batch, generator=generator(), chosen=first.chosen, timer=never
        )


def test_a_network_is_put_into_recorded_forms() -> None:
    spec = network_spec()
    network = build_network(spec, generator=generator()).eval()
    found = with_forms(network, {"layers.0": "packed", "layers.1": "dense", "head": "dense"})
    assert isinstance(found.get_submodule("layers.0"), LowRankLinear)
    assert isinstance(found.get_submodule("layers.1"), DenseLinear)
    assert isinstance(found.get_submodule("layers.2"), LowRankLinear)
    x = torch.randn(6, 1, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(found(x), network(x))
    assert isinstance(network.get_submodule("layers.0"), GblrLinear)


@pytest.mark.parametrize(
    ("forms", "sentence"),
    [
        ({"nothing": "dense"}, "the network has no layer nothing"),
        (
            {"layers.1": "packed"},
            "the form of layers.1 is packed, but low rank, 2 admits dense or structured",
        ),
        ({"layers.0": "structured"}, "admits dense or packed or sliced"),
        ({"head": "structured"}, "but dense admits dense"),
    ],
)
def test_a_form_that_the_layer_has_not_is_refused(forms: dict[str, Form], sentence: str) -> None:
    network = build_network(network_spec(), generator=generator())
    with pytest.raises(ValueError, match=sentence):
        with_forms(network, forms)


def test_what_is_no_form_or_no_network_is_refused_by_its_name() -> None:
    network: Any = build_network(network_spec(), generator=generator())
    wrong: Any = {"layers.1": "Structured"}
    sentence = r"the form of layers\.1 is 'Structured', but .* \('structured', perhaps\) 'dense', "
    with pytest.raises(ValueError, match=sentence):
        with_forms(network, wrong)
    for wrong in (["dense"], {1: "dense"}, None):
        with pytest.raises(TypeError, match=r"forms is .*, but this admits forms by the names"):
            with_forms(network, wrong)
    for network in (None, "network"):
        with pytest.raises(TypeError, match=r"network is a \w+, but this admits a torch\.nn\.Mod"):
            with_forms(network, {"layers.1": "dense"})


def test_a_pass_is_timed_even_if_the_time_for_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.deployment.SHORTEST", 0.0)
    assert seconds_taken(nn.Identity(), torch.zeros(1)) > 0


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other say little of a layer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_real_clock_runs_a_large_narrow_layer_in_its_structure() -> None:
    """With less than a hundredth of the MACs, however busy the machine."""
    layer = build_layer(LowRank(rank=4), rows=1024, columns=1024, generator=generator())
    found = deploy(layer, tokens=128, generator=generator())
    assert found.form == "structured"
    timing = found.timings["structured"]
    assert timing.quartiles[0] <= timing.ratio <= timing.quartiles[1]
    assert timing.ratio < 1
