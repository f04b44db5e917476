"""Group and shuffle: W = P^T B_m P ... P B_1, each B block diagonal, each P a fixed shuffle."""

import itertools
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.structured.base import StructuredLinear, add_bias, draw_normal, real_columns
from models.structured.descent import best_of_restarts, descend
from models.structured.output_error import best_scale
from models.structured.rotations import cayley, inverse_cayley, nearest_rotation, skew_size
from models.structures import GroupAndShuffle

STEPS = 40  # of descent
SWEEPS = 30  # of alternation between rotations
NOISE = 0.1  # on a restart, relative


@final
class GroupAndShuffleLinear(StructuredLinear[GroupAndShuffle]):
    """One batched product for each factor; a shuffle is a reshape and a transpose."""

    def __init__(
        self,
        structure: GroupAndShuffle,
        *,
        rows: int,
        columns: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(structure, rows=rows, columns=columns, bias=bias, dtype=dtype)
        groups, count = structure.groups, structure.factors
        self.sides = structure.sides(rows=rows, columns=columns)
        if structure.orthogonal:
            shapes = [(count, groups, skew_size(self.sides[0]))]
        else:
            pairs = itertools.pairwise(self.sides)
            shapes = [(groups, height, width) for width, height in pairs]
        self.blocks = nn.ParameterList(
            nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes
        )

    def factors(self) -> Sequence[Float[Tensor, "groups height width"]]:
        """The blocks of every factor, the first applied first."""
        if self.spec.orthogonal:
            return list(cayley(self.blocks[0], self.sides[0]))
        return list(self.blocks)

    def product(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """Group, shuffle, group, ..., and the last shuffle backwards."""
        inputs = x.reshape(-1, self.columns)
        y = self._act(inputs).permute(2, 1, 0).flatten(1)
        return add_bias(y.reshape(*x.shape[:-1], y.shape[1])[..., : self.rows], bias)

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """The factors, applied to the identity."""
        like = self.blocks[0]
        identity = torch.eye(self.columns, dtype=like.dtype, device=like.device)
        return self._act(identity).transpose(0, 1).reshape(-1, self.columns)[: self.rows]

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Truncate the SVD of each block that the shuffles leave: the best for two free factors.

        More of them descend from there with identities between. Rotations alternate between the
        nearest ones for each factor, the others fixed.
        """
        start = two_factors(self._padded(weight.double()), self.spec.groups, self.sides)
        if self.spec.orthogonal:
            self._fit_rotations(weight.double(), start, generator)
        elif self.spec.factors == 2:
            self._copy(start)
        else:

            def restart(attempt: int) -> None:
                for own, block in zip(self.blocks, start, strict=True):
                    noise = torch.randn(block.shape, generator=generator, dtype=block.dtype)
                    scale = attempt * NOISE * block.square().mean().sqrt()
                    own.copy_(block + scale * noise.to(block))
                self._rescale(weight, None)

            best_of_restarts(self, weight, None, restart, restarts=2, steps=STEPS)
        if second_moment is not None:
            if not self.spec.orthogonal:
                self._rescale(weight, second_moment)
            descend(self, weight, second_moment, steps=STEPS)

    def reset_matrix(self, generator: torch.Generator) -> None:
        """Draw every block by its width; the first factor's last may see fewer real columns."""
        if self.spec.orthogonal:
            return draw_normal(self.blocks[0], fan_in=self.sides[0], generator=generator)
        for index, block in enumerate(self.blocks):
            fan_in = torch.full((len(block),), self.sides[index])
            if index == 0:
                fan_in = real_columns(self.columns, groups=len(block), width=self.sides[0])
            draw_normal(block, fan_in=fan_in[:, None, None], generator=generator)
        return None

    def fan_ins(self) -> dict[str, float]:
        """Every output sums up its block's columns; all rotations are stacked."""
        if self.spec.orthogonal:
            return {"blocks.0": self.spec.factors * self.sides[0]}
        return {f"blocks.{index}": self.sides[index] for index in range(len(self.blocks))}

    def _act(self, inputs: Float[Tensor, "batch columns"]) -> Float[Tensor, "groups height batch"]:
        groups, width = self.spec.groups, self.sides[0]
        missing = groups * width - self.columns
        if missing:
            inputs = functional.pad(inputs, (0, missing))
        state = inputs.reshape(inputs.shape[0], groups, width).permute(1, 2, 0)
        for index, blocks in enumerate(self.factors()):
            state = shuffled(state) if index else state
            state = torch.bmm(blocks, state)
        return state

    def _padded(
        self, weight: Float[Tensor, "rows columns"]
    ) -> Float[Tensor, "outer_rows outer_columns"]:
        height, width = self.spec.groups * self.sides[-1], self.spec.groups * self.sides[0]
        return functional.pad(weight, (0, width - self.columns, 0, height - self.rows))

    def _copy(self, blocks: Sequence[Tensor]) -> None:
        for own, block in zip(self.blocks, blocks, strict=True):
            own.copy_(block)

    def _rescale(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
    ) -> None:
        self.blocks[0] *= best_scale(self.to_dense(), weight, second_moment)

    def _fit_rotations(
        self,
        weight: Float[Tensor, "rows columns"],
        start: Sequence[Float[Tensor, "groups height width"]],
        generator: torch.Generator,
    ) -> None:
        factors = [nearest_rotation(block) for block in start]
        target = self._padded(weight).reshape(self.sides[0], self.spec.groups, -1).transpose(0, 1)
        factors = alternate(factors, target, sweeps=SWEEPS)
        self.blocks[0].copy_(inverse_cayley(torch.stack(factors), generator))


def shuffled(
    state: Float[Tensor, "groups height batch"],
) -> Float[Tensor, "groups height batch"]:
    """P of every column: entry i goes to (i mod groups) height + i // groups."""
    groups, height, batch = state.shape
    return state.reshape(height, groups, batch).transpose(0, 1)


def unshuffled(
    state: Float[Tensor, "groups height batch"],
) -> Float[Tensor, "groups height batch"]:
    """P^T of every column."""
    return state.transpose(0, 1).reshape(state.shape)


def two_factors(
    padded: Float[Tensor, "outer_rows outer_columns"], groups: int, sides: Sequence[int]
) -> list[Float[Tensor, "groups height width"]]:
    """The blocks of the best first and last factor, with identities between.

    The entries that lead from group j into group t are the rank of one block of the matrix, which
    no other block shares: its truncated SVD.
    """
    first, inner, last = sides[0], sides[1], sides[-1]
    # P^T put row (entry, group) where (group, entry) was.
    blocks = padded.reshape(last, groups, groups, first).permute(1, 2, 0, 3)
    left, singular, right = torch.linalg.svd(blocks, full_matrices=False)
    entries = torch.arange(groups * inner)
    reached = entries.reshape(groups, inner, 1)
    for _ in range(len(sides) - 2):
        reached = shuffled(reached)
    arrived = torch.empty_like(entries)
    arrived[reached.flatten()] = entries
    source, target = entries // inner, arrived // inner
    pair = target * groups + source
    order = pair.argsort(stable=True)
    ranked = pair[order]
    term = torch.empty_like(entries)
    term[order] = entries - torch.searchsorted(ranked, ranked)
    kept = term < singular.shape[-1]
    entries, source, target, term = (value[kept] for value in (entries, source, target, term))
    root = singular[target, source, term].sqrt()[:, None]
    into = padded.new_zeros(groups, inner, first)
    out = padded.new_zeros(groups, last, inner)
    into[source, entries % inner] = right[target, source, term] * root
    out[target, :, arrived[kept] % inner] = left[target, source, :, term] * root
    identity = torch.eye(inner).to(padded).expand(groups, inner, inner)
    return [into, *([identity] * (len(sides) - 3)), out]


def alternate(
    factors: Sequence[Float[Tensor, "groups side side"]],
    target: Float[Tensor, "groups side columns"],
    *,
    sweeps: int,
) -> list[Float[Tensor, "groups side side"]]:
    """Replace each factor by the rotations nearest to the target, the others fixed, in turn.

    The target is P W: of what the factors after one leave of it, and those before, only the blocks
    on the diagonal matter. No step raises the error.
    """
    found = list(factors)
    groups, side, columns = target.shape
    identity = torch.eye(columns).to(target).reshape(groups, side, columns)
    for _ in range(sweeps):
        before = [identity]
        for factor in found[:-1]:
            before.append(shuffled(torch.bmm(factor, before[-1])))
        after = target
        for index in reversed(range(len(found))):
            correlation = torch.bmm(after, before[index].reshape(groups, side, -1).mT)
            found[index] = nearest_rotation(correlation)
            after = torch.bmm(found[index].mT, after)
            after = unshuffled(after) if index else after
    return found
