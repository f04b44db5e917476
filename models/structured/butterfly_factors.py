"""Factors of a butterfly: merged into blocks for a fast product, found in a matrix by hierarchy.

Notation: n = 2^L is the padded side. The factor of stride 2^i views a vector as (upper, pair,
lower) with 2^i lower entries and mixes over `pair`; its numbers are (n/2, 2, 2), the pairs counted
by (upper, lower), then output and input. A run of factors of neighbouring strides views it as
(top, middle, low) and acts over `middle` by dense blocks. Complex numbers are a leading dimension
of two `parts`, real and imaginary; their blocks are real, over (middle, part).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

# The largest blocks into which factors are merged, by its logarithm. For 1576 tokens on one core
# at n = 1024, blocks of 32 x 32 and of 8 or 16 took 10 ms, of 4 x 4 37 ms, factor by factor 29 ms
# and the dense product 90 ms; at n = 4096 blocks of 64 took 241 ms and of 16 102 ms.
LARGEST_BLOCK = 5


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring factors that are merged: of strides 2^low to 2^(high - 1), in either order."""

    first: int  # the factor applied first, counted through all blocks
    low: int
    high: int
    increasing: bool


def runs(levels: int, blocks: int, *, increasing: bool) -> Iterator[Run]:
    """Cut every block into equal runs, as few as `LARGEST_BLOCK` admits, in order of use."""
    pieces = -(-levels // LARGEST_BLOCK)
    cuts = [levels * piece // pieces for piece in range(pieces + 1)]
    for block in range(blocks):
        upwards = increasing == (block % 2 == 0)
        first = block * levels
        spans = list(itertools.pairwise(cuts))
        for low, high in spans if upwards else reversed(spans):
            yield Run(first, low, high, upwards)
            first += high - low


def times(
    left: Float[Tensor, "parts ..."], right: Float[Tensor, "parts ..."]
) -> Float[Tensor, "parts ..."]:
    """The entrywise product of real numbers, or of complex ones by their parts."""
    if len(left) == 1:
        return left * right
    real, imaginary = (
        left[0] * right[0] - left[1] * right[1],
        left[0] * right[1] + left[1] * right[0],
    )
    return torch.stack([real, imaginary])


def merged(
    mixes: Float[Tensor, "parts copies factors pairs 2 2"], run: Run
) -> Float[Tensor, "parts copies top low size size"]:
    """The dense blocks of a run, built from the shortest stride up without a sum.

    Where strides increase, each step puts [D00 A, D01 B; D10 A, D11 B] for two blocks A and B of
    half the size and the diagonals of a factor; where they decrease it is the transpose of that.
    """
    parts, copies, _, pairs = mixes.shape[:4]
    count, low = run.high - run.low, 1 << run.low
    top = 2 * pairs >> run.high
    order = range(count) if run.increasing else reversed(range(count))
    blocks = mixes
    for step, index in enumerate(order):
        half = 1 << step
        mix = mixes[:, :, run.first + index]
        if not run.increasing:
            mix = mix.transpose(-1, -2)
        # (parts, copies, top and upper middle, lower middle, low, output, input)
        mix = mix.reshape(parts, copies, pairs // (half * low), half, low, 2, 2)
        # Then in the order of low, output, lower, input and column.
        mix = mix.permute(0, 1, 2, 4, 5, 3, 6)[..., None]
        if step > 0:
            inner = blocks.reshape(parts, copies, -1, 2, low, half, half)
            mix = times(mix, inner.permute(0, 1, 2, 4, 5, 3, 6)[:, :, :, :, None])
        blocks = mix
    size = 1 << count
    found = blocks.reshape(parts, copies, top, low, size, size)
    return found if run.increasing else found.transpose(-1, -2)


def embedded(
    blocks: Float[Tensor, "parts copies top low size size"], *, first: bool, last: bool
) -> Float[Tensor, "copies top low outputs inputs"]:
    """Real blocks that act on (entry, part): on real parts alone at the first, to them at last."""
    if len(blocks) == 1:
        return blocks[0]
    real, imaginary = blocks
    upper = torch.stack([real] if first else [real, -imaginary], -1)
    if last:
        return upper.flatten(-2)
    lower = torch.stack([imaginary] if first else [imaginary, real], -1)
    return torch.stack([upper.flatten(-2), lower.flatten(-2)], -2).flatten(-3, -2)


def apply_runs(
    mixes: Float[Tensor, "parts copies factors pairs 2 2"],
    plan: Sequence[Run],
    x: Float[Tensor, "inputs batch"],
    *,
    tall: bool,
) -> Float[Tensor, "outputs batch"]:
    """All copies' products, above one another where the matrix is tall, and else summed up.

    The batch stays the last dimension throughout: then nearly every view that a batched product
    asks for is one that it takes without copying. Copies share their first input or sum up their
    last output inside of one product.
    """
    copies, side = mixes.shape[1], 2 * mixes.shape[3]
    state = x.reshape(1 if tall else copies, side, 1, x.shape[1])
    for position, run in enumerate(plan):
        first, last = position == 0, position == len(plan) - 1
        blocks = embedded(merged(mixes, run), first=first, last=last)
        state = _apply(blocks, state, share=first and tall, reduce=last and not tall)
    return state.reshape(len(state) * side, x.shape[1])


def _apply(
    blocks: Float[Tensor, "copies top low outputs inputs"],
    state: Float[Tensor, "sources side parts batch"],
    *,
    share: bool,
    reduce: bool,
) -> Float[Tensor, "results side others batch"]:
    copies, top, low, outputs, inputs = blocks.shape
    sources, side, parts, batch = state.shape
    size = side // (top * low)
    state = state.reshape(sources, top, size, low, parts, batch)
    is_joint = share or reduce
    state = state.permute(1, 3, 0, 2, 4, 5) if is_joint else state.permute(0, 1, 3, 2, 4, 5)
    if share:
        blocks = blocks.permute(1, 2, 0, 3, 4).reshape(top * low, copies * outputs, inputs)
    elif reduce:
        blocks = blocks.permute(1, 2, 3, 0, 4).reshape(top * low, outputs, copies * inputs)
    else:
        blocks = blocks.reshape(copies * top * low, outputs, inputs)
    found = torch.bmm(blocks, state.reshape(len(blocks), blocks.shape[2], batch))
    others = outputs // size
    results = 1 if reduce else copies
    if share:
        found = found.reshape(top, low, copies, size, others, batch).permute(2, 0, 3, 1, 4, 5)
    else:
        found = found.reshape(results, top, low, size, others, batch).permute(0, 1, 3, 2, 4, 5)
    return found.reshape(results, side, others, batch)


def factorised(
    matrices: Num[Tensor, "copies side side"], *, real_part: bool = False
) -> Num[Tensor, "copies factors pairs 2 2"]:
    """The factors of increasing stride of the butterflies found in matrices by hierarchy.

    In W = A B, with A the longer strides and B the shorter, every slice of W with a fixed position
    in B's output and in A's input has rank one: its best such approximation is one row of B and
    one column of A, which are butterflies of half the depth, found in the same way (Zheng et al.,
    SIAM Journal on Mathematics of Data Science 2023, arXiv 2110.01230). Exact for a butterfly.

    Or of complex butterflies whose real parts they are: the slices have rank two, and how their
    terms share in real and imaginary parts is not told by them, so this is only a start.
    """
    copies, side, _ = matrices.shape
    levels = side.bit_length() - 1
    if levels == 1:
        return matrices[:, None, None]
    high, low = 1 << levels // 2, 1 << (levels - levels // 2)
    slices = matrices.reshape(copies, high, low, high, low).permute(0, 2, 3, 1, 4)
    left, singular, right = torch.linalg.svd(slices, full_matrices=False)
    root = singular[..., :2].sqrt()
    columns, second = (left[..., :2] * root[..., None, :]).unbind(-1)
    rows, other = (right[..., :2, :] * root[..., None]).unbind(-2)
    if real_part:
        columns, rows = torch.complex(columns, second), torch.complex(rows, -other)
    # Both count (copies, low output, high input) and the high output or the low input.
    longer = factorised(columns.transpose(-1, -2).reshape(copies * low, high, high))
    shorter = factorised(rows.transpose(1, 2).reshape(copies * high, low, low))
    longer = longer.reshape(copies, low, -1, high // 2, 2, 2).permute(0, 2, 3, 1, 4, 5)
    shorter = shorter.reshape(copies, high, -1, low // 2, 2, 2).transpose(1, 2)
    return torch.cat([shorter.flatten(2, 3), longer.flatten(2, 3)], 1)
