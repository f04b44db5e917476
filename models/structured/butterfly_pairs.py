"""Two real butterflies found in their product: its 2 x 2 blocks are diagonalised together.

Notation: the first and the last factor have the same stride, so the block W_ij of the two inputs of
pair j and the two outputs of pair i is L_i D_ij R_j with D_ij diagonal; its two entries, over all i
and j, are two products of butterflies of half the side. K_i = L_i diag(1, -1) L_i^-1 and
K'_j = R_j^-1 diag(1, -1) R_j have K_i W_ij = W_ij K'_j: linear in both, so one null vector gives
them, and their eigenvectors are L_i and R_j.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TRACELESS = torch.tensor(
    [[[1.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]]
)
TINY = 1e-300
FEW = 32  # pairs that are asked first: all of 768 x 3072 take seconds


def paired_factors(
    matrices: Float[Tensor, "copies side side"],
    rows: Bool[Tensor, "copies side"],
    columns: Bool[Tensor, "copies side"],
    *,
    increasing: bool,
) -> Float[Tensor, "copies factors pairs 2 2"] | None:
    """The factors of two butterflies whose products are these matrices where rows and columns tell.

    Exact for such products of full side. A row whose partner is missing is enough where the pairs
    of columns are whole; an entry without a partner in its row and its column is split anyhow.
    Nothing is found in a large matrix whose first blocks are not diagonalised together.
    """
    copies, side, _ = matrices.shape
    left, tall, wide = matrices[:, None], rows[:, None], columns[:, None]
    first: list[Tensor] = []
    last: list[Tensor] = []
    for _ in range(side.bit_length() - 2):
        half = left.shape[-1] // 2
        if increasing:
            blocks = left.unflatten(3, (half, 2)).unflatten(2, (half, 2)).transpose(3, 4)
            tall, wide = tall.unflatten(2, (half, 2)), wide.unflatten(2, (half, 2))
        else:
            blocks = left.unflatten(3, (2, half)).unflatten(2, (2, half)).permute(0, 1, 3, 5, 2, 4)
            tall, wide = tall.unflatten(2, (2, half)).mT, wide.unflatten(2, (2, half)).mT
        if half > FEW and not _agree(blocks[..., :FEW, :FEW, :, :]):
            return None
        outer, inner = _frames(blocks, tall.all(-1), wide.all(-1))
        # Of a half of a pair: the two numbers that come through are its two entries.
        outer = torch.where(tall.all(-1)[..., None, None], outer, _copied(tall, outer))
        inner = torch.where(wide.all(-1)[..., None, None], inner, _copied(wide, inner).mT)
        is_half = ~(tall.all(-1)[..., :, None] & wide.all(-1)[..., None, :])
        middle = _middle(blocks, outer, inner, is_half)
        for frames, factors in ((inner, first), (outer, last)):
            ordered = frames.transpose(1, 2) if increasing else frames
            factors.append(ordered.reshape(copies, side // 2, 2, 2))
        tall, wide = tall.any(-1), wide.any(-1)
        if increasing:
            left = middle.permute(0, 4, 1, 2, 3).flatten(1, 2)
            tall, wide = tall.repeat(1, 2, 1), wide.repeat(1, 2, 1)
        else:
            left = middle.permute(0, 1, 4, 2, 3).flatten(1, 2)
            tall, wide = tall.repeat_interleave(2, 1), wide.repeat_interleave(2, 1)
    first.append(torch.eye(2).to(matrices).expand(copies, side // 2, 2, 2))
    last.append(left)
    return torch.stack([*first, *reversed(last)], 1)


def _copied(seen: Bool[Tensor, "*nodes 2"], like: Tensor) -> Tensor:
    """(1, 1) for an entry that is seen."""
    return seen[..., None].to(like).expand_as(like)


def _frames(
    blocks: Float[Tensor, "*batch left right 2 2"],
    tall: Bool[Tensor, "*batch left"],
    wide: Bool[Tensor, "*batch right"],
) -> tuple[Float[Tensor, "*batch left 2 2"], Float[Tensor, "*batch right 2 2"]]:
    """L and R, from the whole blocks alone."""
    basis = TRACELESS.to(blocks)
    size = blocks.flatten(-2).norm(dim=-1)
    is_told = tall[..., :, None] & wide[..., None, :] & (size > 0)
    weight = torch.where(is_told, 1 / size.clamp_min(TINY), torch.zeros_like(size))
    blocks = (blocks * weight[..., None, None])[..., None, :, :]
    after, before = (basis @ blocks).flatten(-2), (blocks @ basis).flatten(-2)
    of_left = torch.einsum("...ijkx,...ijlx->...ikl", after, after)
    of_right = torch.einsum("...ijkx,...ijlx->...jkl", before, before)
    joint = -(after @ before.mT).transpose(-3, -2)  # (..., left, 3, right, 3)
    # Given K_i, the best K'_j is linear in them, and the best K_i are then of one eigenproblem.
    answer = torch.einsum("...jlm,...ikjm->...jlik", torch.linalg.pinv(of_right), joint)
    problem = -torch.einsum("...ikjl,...jlpq->...ikpq", joint, answer)
    every = torch.arange(problem.shape[-2])
    problem[..., every, :, every, :] += of_left.movedim(-3, 0)
    problem = problem.flatten(-2).flatten(-3, -2)
    untold = (~is_told.any(-1)).repeat_interleave(3, -1).to(problem)
    problem.diagonal(dim1=-2, dim2=-1).add_(untold * len(every))
    _, vectors = torch.linalg.eigh((problem + problem.mT) / 2)
    found = vectors[..., 0].unflatten(-1, (-1, 3))
    other = -torch.einsum("...jlik,...ik->...jl", answer, found)
    left = torch.einsum("...ik,kab->...iab", found, basis)
    right = torch.einsum("...jk,kab->...jab", other, basis)
    return _eigenvectors(left), _eigenvectors(right.mT).mT


def _agree(blocks: Float[Tensor, "*batch left right 2 2"]) -> bool:
    """Whether common frames leave little beside the diagonals of nearly all blocks."""
    whole = torch.ones(blocks.shape[:-3], dtype=torch.bool)
    outer, inner = _frames(blocks, whole, whole)
    found = torch.linalg.pinv(outer)[..., :, None, :, :] @ blocks
    found = (found @ torch.linalg.pinv(inner)[..., None, :, :, :]).square()
    aside = found[..., 0, 1].sum() + found[..., 1, 0].sum()
    return bool(aside <= 0.1 * found.sum())


def _middle(
    blocks: Float[Tensor, "*batch left right 2 2"],
    outer: Float[Tensor, "*batch left 2 2"],
    inner: Float[Tensor, "*batch right 2 2"],
    is_half: Bool[Tensor, "*batch left right"],
) -> Float[Tensor, "*batch left right 2"]:
    """D, of which a half of a pair is told once, and a quarter by one equation for two numbers."""
    found = torch.linalg.pinv(outer)[..., :, None, :, :] @ blocks
    found = found @ torch.linalg.pinv(inner)[..., None, :, :, :]
    middle = found.diagonal(dim1=-2, dim2=-1)
    return torch.where(is_half[..., None], 2 * middle, middle)


def _eigenvectors(maps: Float[Tensor, "*maps 2 2"]) -> Float[Tensor, "*maps 2 2"]:
    """Of traceless maps, as columns; the identity where none are real."""
    square = -torch.linalg.det(maps)
    maps = maps / square.clamp_min(TINY).sqrt()[..., None, None]
    identity = torch.eye(2).to(maps)
    columns = []
    for sign in (1, -1):
        shifted = maps + sign * identity
        size = shifted.norm(dim=-2, keepdim=True)
        shifted = shifted / size.clamp_min(TINY)
        columns.append(
            torch.where(size[..., :1] > size[..., 1:], shifted[..., :1], shifted[..., 1:])
        )
    found = torch.cat(columns, -1)
    is_real = (square > 0) & found.isfinite().all(-1).all(-1)
    return torch.where(is_real[..., None, None], found, identity)
