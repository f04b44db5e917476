"""Training any network on any task: one loop, resumable at every epoch, stoppable at every step."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.spec import ImageTask, MatrixTask, TextTask
from search.compute import HERE, Engine
from search.data import Data, Split
from search.progress import Progress, StoppedError, Update, stop_if_asked
from search.recipe import Training
from search.resumption import Checkpoint

MATRIX_EPOCH = 100  # full-batch steps that count as one epoch where the data are one matrix
PASS = 250  # samples of one pass where nothing is learned
PASS_CHARACTERS = 2**14  # the same of a text
CHECKPOINT = "checkpoint.safetensors"  # in a trial's folder
WARMUP = 0.05  # share of the steps over which the learning rate rises


class NotFiniteError(ArithmeticError):
    """A loss that is not finite: the step, and the first layer whose weights or outputs are not.

    Where all are finite, the loss alone has overflown.
    """

    def __init__(self, step: int, layer: str | None) -> None:
        where = "" if layer is None else f", first seen in layer {layer}"
        super().__init__(f"the loss is not finite at step {step}{where}")


@dataclass(frozen=True, slots=True)
class Problem:
    """Data, a teacher, and how to train: `rate` is the peak.

    The teacher is its answers on the training part or, where these would be too many to keep, the
    network itself, which is asked anew about every batch. What the engine's device is to work on is
    there already.
    """

    data: Data
    teacher: Float[Tensor, "samples outputs"] | nn.Module | None
    recipe: Training
    rate: float
    seed: int
    engine: Engine = HERE

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the training part."""
        match self.data.task:
            case ImageTask() | TextTask():
                return max(1, self._samples // self.recipe.batch)
            case MatrixTask():
                return MATRIX_EPOCH
            case _:
                assert_never(self.data.task)

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the indices of every batch; the order depends on seed and epoch only."""
        samples = self._samples
        if isinstance(self.data.task, MatrixTask):
            yield from [torch.arange(samples, device=self.engine.device)] * MATRIX_EPOCH
            return
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        if isinstance(self.data.task, TextTask):
            order = self._window_starts(self.data.task.context, generator)
        else:
            order = torch.randperm(samples, generator=generator, device=generator.device)
            order += (epoch % self.data.variants) * samples
        batch = min(self.recipe.batch, samples)
        yield from order[: self.steps_per_epoch * batch].to(self.engine.device).split(batch)

    @property
    def _samples(self) -> int:
        if isinstance(self.data.task, TextTask):
            # As many as there are wherever the first begins.
            whole = max(1, len(self.data.train) // self.data.task.context)
            return min(self.data.windows, whole)
        return len(self.data.train) // self.data.variants

    def _window_starts(self, context: int, generator: torch.Generator) -> Tensor:
        """Begin anywhere in the first window, and choose among those that follow one another."""
        starts = len(self.data.train)
        where = generator.device
        first = int(torch.randint(min(context, starts), (), generator=generator, device=where))
        places = torch.arange(first, starts, context, device=where)
        order = torch.randperm(len(places), generator=generator, device=where)
        return places[order[: self._samples]]

    def loss(self, network: nn.Module, indices: Tensor) -> Tensor:
        """Return the training loss of one batch, distilled where there is a teacher."""
        inputs = self.data.train.inputs[indices]
        outputs = self.engine.forward(network, inputs)
        own = task_loss(self.data, outputs, self.data.train.targets[indices])
        weight = self.recipe.distillation
        if self.teacher is None or weight == 0:
            return own
        return (1 - weight) * own + weight * divergence(outputs, self._answers(inputs, indices))

    @torch.no_grad()
    def _answers(self, inputs: Tensor, indices: Tensor) -> Tensor:
        assert self.teacher is not None
        if isinstance(self.teacher, Tensor):
            return self.teacher[indices]
        return self.engine.forward(self.teacher, inputs)


def divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """How far scores are from the wanted ones: the mean KL divergence of their distributions."""
    found, wanted = F.log_softmax(found, dim=-1), F.log_softmax(wanted, dim=-1)
    found, wanted = found.flatten(0, -2), wanted.flatten(0, -2)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def task_loss(data: Data, outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of classes or characters; the relative squared error of a matrix's columns."""
    match data.task:
        case ImageTask() | TextTask():
            return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
        case MatrixTask():
            error = (outputs - targets).square().sum(-1).mean()
            return error / data.train.targets.square().sum(-1).mean()
        case _:
            assert_never(data.task)


@torch.no_grad()
def answers(network: nn.Module, inputs: Tensor, *, batch: int | None = None) -> Tensor:
    """Return the network's outputs on all inputs, in evaluation mode."""
    network.eval()
    return torch.cat([network(part) for part in inputs.split(batch or pass_size(inputs))])


def pass_size(inputs: Tensor) -> int:
    """How many inputs go through a network at once, so that the memory they take stays moderate."""
    if inputs.is_floating_point():
        return PASS
    return max(1, PASS_CHARACTERS // inputs.shape[1])


@torch.no_grad()
def evaluate(network: nn.Module, data: Data, split: Split) -> tuple[float, float | None]:
    """Return the mean loss and the accuracy, which is None where there are no classes.

    Of a text: nats for each character, and the share of next characters that are foreseen.
    """
    network.eval()
    size, loss, right = pass_size(split.inputs), 0.0, 0
    parts = zip(split.inputs.split(size), split.targets.split(size), strict=True)
    for inputs, targets in parts:
        outputs = network(inputs)
        loss += float(task_loss(data, outputs, targets)) * len(inputs)
        if not isinstance(data.task, MatrixTask):
            right += int((outputs.argmax(-1) == targets).sum())
    loss /= len(split)
    return loss, None if isinstance(data.task, MatrixTask) else right / split.targets.numel()


@dataclass(frozen=True, slots=True)
class Course:
    """A whole training: on what, for how many epochs, where it is kept, and whom it tells.

    `after_epoch` is told the steps done and the validation loss, also of epochs that were done
    before a resumption.
    """

    problem: Problem
    epochs: int
    checkpoint: Path
    progress: Progress
    after_epoch: Callable[[int, float], None] = lambda _step, _loss: None

    @property
    def steps(self) -> int:
        """Optimiser steps from the first to the last: what the learning rate's schedule spans."""
        return self.epochs * self.problem.steps_per_epoch


def fit(
    network: nn.Module,
    course: Course,
    groups: list[dict[str, Any]],
    *,
    phase: str,
    some_rest: bool = False,
    before_step: Callable[[int], None] = lambda _: None,
    after_backward: Callable[[int], None] = lambda _: None,
    after_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Train through the course, from its checkpoint where that was written in this phase.

    A group's `factor` multiplies the learning rate; `some_rest` says that a step may leave some of
    the parameters out. `before_step` may set what depends on the step alone, `after_backward` sees
    the gradients, `after_step` the new weights.
    With several processes, this one's part in it is what its engine's team says; only the first
    evaluates, keeps checkpoints and calls `after_epoch`.
    Raises StoppedError, NotFiniteError, and what `Team.assembled` raises.
    """
    problem, progress, total = course.problem, course.progress, course.steps
    optimiser = torch.optim.AdamW(
        groups,
        lr=problem.rate,
        weight_decay=problem.recipe.weight_decay,
        fused=True,
    )
    per_epoch, team = problem.steps_per_epoch, problem.engine.team
    kept = Checkpoint(course.checkpoint)
    losses = _resume(kept, phase, network, optimiser)
    for index, known in enumerate(losses, 1):
        # Told again: who was killed may have kept the epoch and not yet said what it came to.
        done, metrics = index * per_epoch, {"validation_loss": known}
        progress.report(Update(phase, done, total, metrics=metrics))
        course.after_epoch(done, known)
    left = range(len(losses), course.epochs)
    if not left:
        return
    with team.assembled(lambda: stop_if_asked(progress)):
        shared = team.share(network, some_rest=some_rest)
        for epoch in left:
            network.train()
            for index, indices in enumerate(problem.batches(epoch)):
                step = epoch * per_epoch + index
                share = learning_rate_share(step, total)
                for group in optimiser.param_groups:
                    group["lr"] = problem.rate * share * group["factor"]
                stop = progress.should_stop()
                before_step(step)
                optimiser.zero_grad(set_to_none=True)
                loss, stop = _backward(shared, network, problem, indices, stop=stop)
                if stop:
                    raise StoppedError
                after_backward(step)
                _check_finite(loss.item(), step, network, problem.data.train, indices)
                optimiser.step()
                after_step(step)
                progress.report(Update(phase, step + 1, total))
            if not team.leads:
                continue
            done = (epoch + 1) * per_epoch
            validation, accuracy = evaluate(network, problem.data, problem.data.validation)
            _check_finite(validation, done, network, problem.data.validation)
            losses.append(validation)
            _save(kept, phase, losses, network, optimiser)
            metrics = {"training_loss": loss.item(), "validation_loss": validation}
            if accuracy is not None:
                metrics["validation_accuracy"] = accuracy
            progress.report(Update(phase, done, total, metrics=metrics))
            course.after_epoch(done, validation)


def _backward(
    shared: nn.Module, network: nn.Module, problem: Problem, indices: Tensor, *, stop: bool
) -> tuple[Tensor, bool]:
    """Find the gradients of a whole batch's loss, each process of its part; stop if one is to."""
    engine = problem.engine
    mine, factor = engine.team.part(indices)
    with engine.generated(network):
        loss = problem.loss(shared, mine) * factor
    loss.backward()
    return engine.team.agree(loss, stop=stop)


def learning_rate_share(step: int, total: int) -> float:
    """Rise linearly over the warm-up, then fall to zero along a half cosine."""
    rise = min(1.0, (step + 1) / max(1.0, WARMUP * total))
    return rise * 0.5 * (1 + math.cos(math.pi * step / total))


def weight_groups(
    network: nn.Module, *, without: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Group the parameters: matrices decay, vectors do not."""
    left_out = set(map(id, without))
    weights = [p for p in network.parameters() if id(p) not in left_out]
    return [
        {"params": [p for p in weights if p.ndim > 1], "factor": 1.0},
        {"params": [p for p in weights if p.ndim <= 1], "factor": 1.0, "weight_decay": 0.0},
    ]


def checkpoint_phase(checkpoint: Path) -> str | None:
    """Return the name of the phase a checkpoint was written in, if there is one."""
    kept = Checkpoint(checkpoint).load()
    return None if kept is None else str(kept[1]["phase"])


def _check_finite(
    loss: float, step: int, network: nn.Module, split: Split, indices: Tensor | None = None
) -> None:
    """Raise NotFiniteError for such a loss of a split, or of some of its samples."""
    if not math.isfinite(loss):
        inputs = split.inputs if indices is None else split.inputs[indices]
        raise NotFiniteError(step, _first_not_finite(network, inputs))


def _first_not_finite(network: nn.Module, inputs: Tensor) -> str | None:
    """Name the first layer whose weights are not finite or, where all are, whose outputs are not.

    Gradients would not tell: those of a loss that is not finite are so in no layer.
    """
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            return name.rpartition(".")[0] or name
    found: list[str] = []

    def look(name: str, outputs: Tensor) -> None:
        if not found and isinstance(outputs, Tensor) and not torch.isfinite(outputs).all():
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out, name=name: look(name, out))
        for name, module in network.named_modules()
        if name
    ]
    answers(network, inputs)
    for hook in hooks:
        hook.remove()
    return found[0] if found else None


def _save(
    checkpoint: Checkpoint,
    phase: str,
    losses: list[float],
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> None:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    checkpoint.save(tensors, {"phase": phase, "losses": losses})


def _resume(
    checkpoint: Checkpoint, phase: str, network: nn.Module, optimiser: torch.optim.Optimizer
) -> list[float]:
    """Return the validation losses of the phase's epochs that are done."""
    kept = checkpoint.load()
    if kept is None or kept[1]["phase"] != phase:
        return []
    tensors, notes = kept
    network.load_state_dict(_below("network.", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimiser.", tensors).items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": moments, "param_groups": groups})
    return [float(loss) for loss in notes["losses"]]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
