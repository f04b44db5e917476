"""The training loop: repeatable, resumable at every epoch, stoppable at every step."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.build import build_network
from models.spec import TextTask
from search.data import Data, matrix_data, text_data
from search.progress import Progress, StoppedError
from search.recipe import Training
from search.training import (
    MATRIX_EPOCH,
    Course,
    NotFiniteError,
    Problem,
    answers,
    checkpoint_phase,
    evaluate,
    fit,
    learning_rate_share,
    weight_groups,
)
from tests.unit.search.builders import Listener, mixed_matrix
from tests.unit.search.conftest import Trained

EPOCHS = 4


@pytest.fixture
def problem(trained: Trained) -> Problem:
    return Problem(trained.data, trained.reference.answers, Training(), rate=0.01, seed=5)


def network(trained: Trained) -> nn.Module:
    return build_network(trained.resolved.network, generator=torch.Generator().manual_seed(1))


def train(
    module: nn.Module,
    problem: Problem,
    checkpoint: Path,
    *,
    progress: Progress | None = None,
    phase: str = "training",
) -> dict[str, Tensor]:
    course = Course(problem, EPOCHS, checkpoint, progress or Listener())
    fit(module, course, weight_groups(module), phase=phase)
    return module.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_same_seed_gives_the_same_weights(
    trained: Trained, problem: Problem, tmp_path: Path
) -> None:
    one = train(network(trained), problem, tmp_path / "one")
    two = train(network(trained), problem, tmp_path / "two")
    assert same(one, two)


def test_another_seed_gives_others(trained: Trained, problem: Problem, tmp_path: Path) -> None:
    other = dataclasses.replace(problem, seed=6)
    one = train(network(trained), problem, tmp_path / "one")
    assert not same(one, train(network(trained), other, tmp_path / "two"))


@pytest.mark.parametrize("done", [1, 3])
def test_resumed_after_an_epoch_equals_uninterrupted(
    trained: Trained, problem: Problem, tmp_path: Path, done: int
) -> None:
    whole = train(network(trained), problem, tmp_path / "whole")
    stop = Listener(stop_after=done * problem.steps_per_epoch)
    with pytest.raises(StoppedError):
        train(network(trained), problem, tmp_path / "parts", progress=stop)
    assert same(train(network(trained), problem, tmp_path / "parts"), whole)


def test_stopped_in_the_middle_of_an_epoch_then_resumed_equals_uninterrupted(
    trained: Trained, problem: Problem, tmp_path: Path
) -> None:
    whole = train(network(trained), problem, tmp_path / "whole")
    steps = problem.steps_per_epoch * 2 + 2
    stop = Listener(stop_after=steps)
    with pytest.raises(StoppedError):
        train(network(trained), problem, tmp_path / "parts", progress=stop)
    assert same(train(network(trained), problem, tmp_path / "parts"), whole)


def test_asked_to_stop_it_takes_no_further_step(
    trained: Trained, problem: Problem, checkpoint: Path
) -> None:
    listener = Listener(stop_after=3)
    with pytest.raises(StoppedError):
        train(network(trained), problem, checkpoint, progress=listener)
    assert listener.asked == 4
    assert [update.done for update in listener.updates] == [1, 2, 3]


def test_a_checkpoint_of_another_phase_is_not_resumed(
    trained: Trained, problem: Problem, checkpoint: Path
) -> None:
    assert checkpoint_phase(checkpoint) is None
    train(network(trained), problem, checkpoint, phase="learning")
    assert checkpoint_phase(checkpoint) == "learning"
    listener = Listener()
    train(network(trained), problem, checkpoint, phase="tuning", progress=listener)
    assert listener.updates[0].done == 1
    assert checkpoint_phase(checkpoint) == "tuning"


def test_every_epoch_reports_its_losses_and_every_step_where_it_stands(
    trained: Trained, problem: Problem, checkpoint: Path
) -> None:
    listener = Listener()
    module = network(trained)
    train(module, problem, checkpoint, progress=listener)
    total = EPOCHS * problem.steps_per_epoch
    assert [u.done for u in listener.updates if not u.metrics] == list(range(1, total + 1))
    assert {u.total for u in listener.updates} == {total}
    epochs = [u for u in listener.updates if u.metrics]
    assert [u.done for u in epochs] == list(range(5, total + 1, 5))
    loss, accuracy = evaluate(module, problem.data, problem.data.validation)
    assert epochs[-1].metrics["validation_loss"] == loss
    assert epochs[-1].metrics["validation_accuracy"] == accuracy


@pytest.mark.parametrize("spoilt", ["layers.0", "layers.1", "head"])
def test_a_loss_that_is_no_number_names_the_step_and_the_layer(
    trained: Trained, problem: Problem, checkpoint: Path, spoilt: str
) -> None:
    module = network(trained)
    with torch.no_grad():
        module.get_parameter(f"{spoilt}.weight")[0, 0] = math.nan
    with pytest.raises(NotFiniteError, match=f"finite at step 0, first seen in layer {spoilt}$"):
        train(module, problem, checkpoint)


def test_a_layer_whose_outputs_overflow_is_named_though_all_weights_are_finite(
    trained: Trained, problem: Problem, checkpoint: Path
) -> None:
    module = network(trained)
    with torch.no_grad():
        module.get_parameter("layers.0.weight").mul_(1e30)
        module.get_parameter("layers.1.weight").mul_(1e30)
    with pytest.raises(
        NotFiniteError, match=r"not finite at step 0, first seen in layer layers\.1$"
    ):
        train(module, problem, checkpoint)


def test_the_step_of_a_loss_that_turns_into_no_number_is_named(
    trained: Trained, problem: Problem, checkpoint: Path
) -> None:
    module = network(trained)

    def spoil(step: int) -> None:
        if step == 7:
            with torch.no_grad():
                module.get_parameter("head.weight").fill_(math.inf)

    course = Course(problem, EPOCHS, checkpoint, Listener())
    with pytest.raises(NotFiniteError, match="step 8, first seen in layer head"):
        fit(module, course, weight_groups(module), phase="training", after_step=spoil)


def test_weights_spoilt_by_the_very_last_step_of_an_epoch_are_noticed(
    trained: Trained, problem: Problem, checkpoint: Path
) -> None:
    module = network(trained)

    def spoil(step: int) -> None:
        if step == problem.steps_per_epoch - 1:
            with torch.no_grad():
                module.get_parameter("head.weight").fill_(math.nan)

    course = Course(problem, 1, checkpoint, Listener())
    with pytest.raises(NotFiniteError, match="step 5, first seen in layer head"):
        fit(module, course, weight_groups(module), phase="training", after_step=spoil)
    assert checkpoint_phase(checkpoint) is None


def test_an_epoch_reads_every_sample_once_in_an_order_of_its_own(problem: Problem) -> None:
    epochs = [torch.cat(list(problem.batches(epoch))) for epoch in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert epochs[0].sort().values.tolist() == list(range(320))


def test_each_epoch_reads_the_next_of_the_shifted_copies(digits: Data) -> None:
    copies = dataclasses.replace(digits, variants=4)
    problem = Problem(copies, None, Training(batch=16), rate=0.01, seed=0)
    assert problem.steps_per_epoch == 5
    ranges = [torch.cat(list(problem.batches(epoch))).aminmax() for epoch in range(5)]
    assert [(int(low), int(high)) for low, high in ranges] == [
        *((0, 79), (80, 159), (160, 239), (240, 319), (0, 79)),
    ]


@pytest.fixture
def text() -> Data:
    return text_data("the cat sat on the mat. " * 60, TextTask(vocabulary=96, context=8))


def test_an_epoch_of_a_text_is_windows_that_do_not_overlap(text: Data) -> None:
    problem = Problem(text, None, Training(batch=16), rate=0.01, seed=0)
    epochs = [torch.cat(list(problem.batches(epoch))) for epoch in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1])
    assert problem.steps_per_epoch == len(list(problem.batches(1))) == 143 // 16
    places = epochs[0].sort().values
    assert (places.diff() % 8 == 0).all()
    assert (places.diff() >= 8).all()
    assert places[0] % 8 != epochs[2].min() % 8  # another offset, for these two epochs
    assert len(text.train.inputs[epochs[0]]) == len(epochs[0])


def test_a_bounded_epoch_reads_other_windows_each_time(text: Data) -> None:
    bounded = dataclasses.replace(text, windows=32)
    problem = Problem(bounded, None, Training(batch=16), rate=0.01, seed=0)
    assert problem.steps_per_epoch == 2
    one, other = (set(torch.cat(list(problem.batches(e))).tolist()) for e in (0, 1))
    assert len(one) == len(other) == 32
    assert one != other


def test_the_loss_of_a_text_is_that_of_every_character(text: Data) -> None:
    class Certain(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return F.one_hot(inputs, 96) * 3.0

    loss, accuracy = evaluate(Certain(), text, text.test)
    right = text.test.inputs == text.test.targets
    scores = F.one_hot(text.test.inputs, 96) * 3.0
    expected = -scores.log_softmax(-1).gather(-1, text.test.targets[..., None]).mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert accuracy == pytest.approx(float(right.double().mean()))
    problem = Problem(text, None, Training(), rate=0.01, seed=0)
    assert problem.loss(Certain(), torch.arange(5)).ndim == 0


def test_a_teacher_may_be_asked_about_every_batch(trained: Trained) -> None:
    data, known, network = trained.data, trained.reference.answers, trained.reference.network
    student, recipe = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Training(distillation=0.5)
    problems = [Problem(data, teacher, recipe, 0.01, seed=0) for teacher in (known, network)]
    one, other = (problem.loss(student, torch.arange(9)) for problem in problems)
    torch.testing.assert_close(one, other)
    other.backward()
    assert all(p.grad is None for p in network.parameters())


def test_a_batch_larger_than_the_data_is_all_of_them(digits: Data) -> None:
    problem = Problem(digits, None, Training(batch=10_000), rate=0.01, seed=0)
    assert problem.steps_per_epoch == 1
    assert [len(batch) for batch in problem.batches(0)] == [320]


def test_an_epoch_of_a_matrix_is_so_many_steps_over_all_of_it() -> None:
    problem = Problem(matrix_data(mixed_matrix()), None, Training(), rate=0.01, seed=0)
    assert problem.steps_per_epoch == MATRIX_EPOCH == len(list(problem.batches(0)))


def test_the_loss_of_a_matrix_is_the_relative_squared_error() -> None:
    weight = mixed_matrix()
    data = matrix_data(weight)
    module = nn.Linear(16, 24, bias=False)
    with torch.no_grad():
        module.weight.copy_(0.9 * weight)
    loss, accuracy = evaluate(module, data, data.test)
    assert loss == pytest.approx(0.01, rel=1e-4)
    assert accuracy is None


def test_distillation_is_zero_where_the_student_is_the_teacher(trained: Trained) -> None:
    teacher = trained.reference
    recipe = Training(distillation=1.0)
    problem = Problem(trained.data, teacher.answers, recipe, rate=0.01, seed=0)
    loss = problem.loss(teacher.network, torch.arange(64)).item()
    assert loss == pytest.approx(0, abs=1e-5)


def test_answers_do_not_depend_on_how_inputs_are_batched(trained: Trained) -> None:
    inputs = trained.data.validation.inputs
    whole = answers(trained.reference.network, inputs, batch=1000)
    torch.testing.assert_close(answers(trained.reference.network, inputs, batch=7), whole)


def test_the_learning_rate_rises_and_then_falls_to_nothing() -> None:
    shares = [learning_rate_share(step, 100) for step in range(101)]
    assert shares[:5] == sorted(shares[:5])
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert 0 < shares[0] < 0.25
    assert shares[100] == 0


def test_the_rate_and_a_groups_factor_set_how_fast_weights_move(
    trained: Trained, problem: Problem, checkpoint: Path
) -> None:
    module = network(trained)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rates: list[tuple[float, ...]] = []
    groups = weight_groups(module)
    groups[1]["factor"] = 0.0

    def note(step: int) -> None:
        moved = {name: (value - before[name]).abs().max() for name, value in rated(module)}
        rates.append(tuple(float(value) for value in moved.values()))

    def rated(module: nn.Module) -> list[tuple[str, Tensor]]:
        return [(name, p.detach()) for name, p in module.named_parameters() if p.ndim > 1]

    course = Course(problem, 1, checkpoint, Listener())
    fit(module, course, groups, phase="training", after_step=note)
    first_share = learning_rate_share(0, problem.steps_per_epoch)
    # Adam's first step is the rate itself, wherever there is a gradient; decay adds a little.
    assert max(rates[0]) == pytest.approx(problem.rate * first_share, rel=0.05)
    after = module.state_dict()
    assert all(torch.equal(after[n], before[n]) == (before[n].ndim == 1) for n in before)


def test_what_depends_on_the_step_is_set_before_the_loss_is_taken(
    trained: Trained, problem: Problem, checkpoint: Path
) -> None:
    module, order = network(trained), list[tuple[str, int]]()
    module.register_forward_pre_hook(lambda *_: order.append(("forward", module.training)))
    fit(
        module,
        Course(
            problem,
            1,
            checkpoint,
            Listener(),
            after_epoch=lambda done, _loss: order.append(("epoch", done)),
        ),
        weight_groups(module),
        phase="training",
        before_step=lambda step: order.append(("before", step)),
        after_backward=lambda step: order.append(("backward", step)),
        after_step=lambda step: order.append(("after", step)),
    )
    names = ["before", "forward", "backward", "after"]
    steps = [entry for entry in order if entry[0] != "forward"]
    assert [name for name, _ in order][:20] == names * 5
    assert [step for _, step in steps] == [s for step in range(5) for s in [step] * 3] + [5]


def test_parameters_left_out_are_in_no_group_and_the_others_in_one(trained: Trained) -> None:
    module = network(trained)
    left_out = [module.get_parameter("layers.0.weight"), module.get_parameter("head.bias")]
    matrices, vectors = weight_groups(module, without=left_out)
    grouped = [id(p) for p in (*matrices["params"], *vectors["params"])]
    assert sorted(grouped + [id(p) for p in left_out]) == sorted(map(id, module.parameters()))
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert "weight_decay" not in matrices
    assert vectors["weight_decay"] == 0
