"""A frame as a train of orthonormal cores: its product from either side, and its projection."""

from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.frames import frame, frame_numbers, random_frame
from models.structures.frames import Train


@final
class FrameTrain(nn.Module):
    """The reflections of all cores; those that are merged for a product are merged when asked for.

    A group of cores is a matrix of (its digits, rank before) x rank after: with the fastest digit
    first in the train, every step of a product is one GEMM on contiguous numbers.
    """

    def __init__(self, train: Train, *, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.train_sizes = train
        self.cores = nn.ParameterList(
            nn.Parameter(torch.zeros(train.core_size(core), dtype=dtype))
            for core in range(len(train.modes))
        )
        self.cuts = train.groups()

    def groups(self) -> list[Tensor]:
        """The merged cores; the whole frame, cropped, if they are all in one group."""
        found = [self._merged(first, last) for first, last in pairwise(self.cuts)]
        if len(found) == 1:
            return [found[0][: self.train_sizes.length]]
        return found

    def whole(self) -> Float[Tensor, "length rank"]:
        """The frame without its padding."""
        return self.padded()[: self.train_sizes.length]

    def padded(self) -> Float[Tensor, "padded rank"]:
        """The frame with its padding: the matrix whose columns are orthonormal."""
        return self._merged(0, len(self.cores))

    def core(self, index: int) -> Float[Tensor, "length rank"]:
        """One core, made of its reflections."""
        length, rank = self.train_sizes.core_shape(index)
        reduced = self.train_sizes.is_reduced(index)
        return frame(self.cores[index], length=length, rank=rank, reduced=reduced)

    def set_frame(
        self, basis: Float[Tensor, "padded rank"], *, signed: bool
    ) -> Float[Tensor, "rank rank"]:
        """Take over a frame that is a train of these ranks, up to the signs of its columns.

        Returns the orthogonal matrix that turns the frame that was found back into `basis`.
        """
        rest = basis
        for index, numbers in enumerate(self.cores):
            length, rank = self.train_sizes.core_shape(index)
            reduced = self.train_sizes.is_reduced(index)
            unfolded = rest.reshape(-1, length, basis.shape[1])
            last = index == len(self.cores) - 1
            core = unfolded[0] if last else leading_space(unfolded, rank)
            numbers.copy_(frame_numbers(core, reduced=reduced, signed=signed and not reduced))
            # The core as it is from now on: what it does not hold, the rest of the train must.
            kept = frame(numbers.to(basis), length=length, rank=rank, reduced=reduced)
            rest = torch.einsum("lr,gln->grn", kept, unfolded).flatten(0, 1)
        return rest

    def draw(self, generator: torch.Generator) -> None:
        """Draw every core evenly from all frames.

        The identity plus a little noise, as published, would leave all but `rank` outputs at zero.
        """
        for index, numbers in enumerate(self.cores):
            core = random_frame(*self.train_sizes.core_shape(index), generator)
            numbers.copy_(frame_numbers(core, reduced=self.train_sizes.is_reduced(index)))

    def _merged(self, first: int, last: int) -> Tensor:
        found = self.core(first)
        for index in range(first + 1, last):
            mode, before = self.train_sizes.modes[index], self.train_sizes.ranks[index]
            found = torch.matmul(found, self.core(index).reshape(mode, before, -1)).flatten(0, 1)
        return found


def contracted(
    groups: list[Tensor], x: Float[Tensor, "*batch length"], padded: int
) -> Float[Tensor, "*batch rank"]:
    """Q^T x of a frame that is given by its groups."""
    if len(groups) == 1:
        return x @ groups[0]
    y = functional.pad(x, (0, padded - x.shape[-1]))
    for group in groups:
        y = (y.unflatten(-1, (-1, len(group))) @ group).flatten(-2)
    return y


def expanded(
    groups: list[Tensor], z: Float[Tensor, "*batch rank"], length: int
) -> Float[Tensor, "*batch length"]:
    """Q z of a frame that is given by its groups."""
    y = z
    for group in reversed(groups):
        y = (y.unflatten(-1, (-1, group.shape[1])) @ group.T).flatten(-2)
    return y[..., :length]


def leading_space(
    unfolded: Float[Tensor, "groups length columns"], rank: int
) -> Float[Tensor, "length rank"]:
    """The space of this rank that holds most of the energy, by a small symmetric eigenproblem."""
    gram = torch.einsum("gln,gkn->lk", unfolded, unfolded)
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors.flip(1)[:, :rank]


def inner_projection(
    matrix: Float[Tensor, "padded columns"], train: Train
) -> tuple[list[Tensor], Float[Tensor, "length columns"]]:
    """All cores but the last of a train that holds most of a matrix, and the last one's share."""
    cores: list[Tensor] = []
    rest = matrix
    for index in range(len(train.modes) - 1):
        length, rank = train.core_shape(index)
        unfolded = rest.reshape(-1, length, matrix.shape[1])
        cores.append(leading_space(unfolded, rank))
        rest = torch.einsum("lr,gln->grn", cores[-1], unfolded).flatten(0, 1)
    return cores, rest


def lifted(cores: list[Tensor], last: Float[Tensor, "length rank"]) -> Float[Tensor, "padded rank"]:
    """The frame whose last core this is."""
    found = last
    for core in reversed(cores):
        found = torch.einsum("lr,grn->gln", core, found.reshape(-1, core.shape[1], last.shape[1]))
        found = found.flatten(0, 1)
    return found
