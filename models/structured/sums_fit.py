"""The nearest sum of structures to a matrix: alternating projections, then descent together."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.base import StructuredLinear
from models.structured.descent import descend, layer_parameters
from models.structured.output_error import output_energy, regularised

TRIAL, ROUNDS = 2, 12  # of projecting every part once: before the better order is chosen; at most
PROGRESS = 1e-3  # a round that lowers the error by a smaller share is the last
# Steps of the descent that follows: as many as some seconds allow, within these bounds.
WORK, FEWEST_STEPS, MOST_STEPS = 1e7, 5, 300


@dataclass(frozen=True, slots=True)
class Found:
    """The numbers of all parts and their matrices, and the squared (output) error they leave."""

    numbers: list[Tensor]
    images: list[Tensor]
    error: float
    settled: bool


def fit_sum(
    layer: StructuredLinear,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    generator: torch.Generator,
) -> None:
    """Set the parts of a layer by alternation in the better order, given or reversed.

    Given C, what is found without it is a third start, so that it never is better.
    """
    matrix = weight.detach().double()
    moment = None if second_moment is None else regularised(second_moment)
    trial = copy.deepcopy(layer).double()
    numbers = layer_parameters(trial)
    alternation = Alternation(trial, matrix, moment, generator)
    starts = []
    if second_moment is not None:
        fit_sum(trial, matrix, None, generator)
        starts.append(alternation.found(alternation.images()))
    forwards = range(len(alternation.parts))
    trials = [(order, alternation.run(order, TRIAL)) for order in (forwards, forwards[::-1])]
    order, best = min(trials, key=lambda pair: pair[1].error)
    if not best.settled:
        best = alternation.run(order, ROUNDS - TRIAL, best)
    best = min([best, *starts], key=lambda one: one.error)
    copy_all(numbers, best.numbers)
    steps = max(FEWEST_STEPS, min(MOST_STEPS, int(WORK / matrix.numel())))
    descend(trial, matrix, moment, steps=steps)
    copy_all(layer_parameters(layer), numbers)


@dataclass(frozen=True, slots=True)
class Alternation:
    """Projecting in turn each part of a layer on what the others leave."""

    layer: StructuredLinear
    matrix: Float[Tensor, "rows columns"]
    moment: Float[Tensor, "columns columns"] | None
    generator: torch.Generator

    @property
    def parts(self) -> list[StructuredLinear]:
        """The layers whose matrices add up to the layer's."""
        return [one for one in self.layer.modules() if isinstance(one, StructuredLinear)][1:]

    def images(self) -> list[Tensor]:
        """The matrix of every part."""
        return [part.to_dense().clone() for part in self.parts]

    def found(self, images: list[Tensor], before: Found | None = None) -> Found:
        """Take down where the parts are, unless they were better before."""
        error = float(output_energy(self.matrix - total(images), self.moment))
        energy = float(output_energy(self.matrix, self.moment))
        settled = error <= torch.finfo(self.matrix.dtype).eps * energy
        if before is not None:
            settled |= error > (1 - PROGRESS) * before.error
            if error >= before.error:
                return replace(before, settled=True)
        numbers = [tensor.clone() for tensor in layer_parameters(self.layer)]
        return Found(numbers, images, error, settled)

    def run(self, order: Sequence[int], rounds: int, start: Found | None = None) -> Found:
        """Some rounds, from nothing or from where earlier ones ended; the best is kept."""
        best = start
        images = self.images_of(start)
        for _ in range(rounds):
            for index in order:
                others = total([*images[:index], *images[index + 1 :]])
                self.parts[index].fit_matrix(self.matrix - others, self.moment, self.generator)
                images[index] = self.parts[index].to_dense().clone()
            best = self.found(list(images), best)
            if best.settled:
                break
        assert best is not None
        return best

    def images_of(self, start: Found | None) -> list[Tensor]:
        """Of a start, or zeros."""
        if start is None:
            return [torch.zeros_like(self.matrix) for _ in self.parts]
        copy_all(layer_parameters(self.layer), start.numbers)
        return list(start.images)


def total(matrices: Sequence[Tensor]) -> Tensor:
    """Add matrices up."""
    return torch.stack(list(matrices)).sum(0)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors one by one."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
