"""A complex butterfly found in its real part: complex structures carried along rank-two factors.

Notation: written as real 2 x 2 matrices, complex factors are blocks between nodes, the inner ones
between two planes. SVDs by hierarchy find those blocks X, each plane in a basis of its own. In
plane p, multiplying by i is some J_p with J_p^2 = -1, and X J_p = J_q X along every block. Carried
to one plane by T along a tree of blocks, that says: J commutes with T_q^-1 X T_p of every block.
What commutes with all of them is found in a 3 x 3 eigenproblem; the basis (1, J 1) makes the rest
complex numbers. Inner blocks leave the first and last bit of a position alone: four trees.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from models.structured.butterfly_newton import nodes
from models.structured.butterfly_pairs import TRACELESS

# Where all transports commute, as of unitary mixes, any J will do: then the 3 x 3 problem is only
# rounding, of this share of what it could be.
FREE = 1e-9
TINY = 1e-300


def complex_factors(
    matrices: Float[Tensor, "copies side side"],
) -> Complex[Tensor, "copies factors pairs 2 2"]:
    """The factors, strides increasing, of complex butterflies whose real parts are these matrices.

    Exact where the matrices are such real parts of full size; else a start.
    """
    copies, side, _ = matrices.shape
    levels = side.bit_length() - 1
    if levels == 1:
        return torch.complex(matrices, torch.zeros_like(matrices))[:, None, None]
    found = _planar(matrices[:, :, None, :, None])
    blocks = [block.permute(0, 1, 2, 4, 3, 5) for block in found]  # (..., output, input, 2, 2)
    places = [nodes(side, 1 << level) for level in range(levels)]
    carried = _carried(blocks, places, copies, side)
    tree = torch.arange(side) // (side // 2) * 2 + torch.arange(side) % 2
    one = _complex_structures(blocks, places, carried, tree)
    first = torch.tensor([1.0, 0.0]).to(one).expand_as(one[..., 0])
    whole = torch.eye(2).to(one)
    carried = [
        torch.where(plane.any(-1).any(-1)[..., None, None], plane, whole) for plane in carried
    ]
    bases = [plane @ torch.stack([first, one[..., 0]], -1)[:, tree] for plane in carried]
    factors = []
    for level, block in enumerate(blocks):
        turned = block
        if level < levels - 1:
            after = bases[level][:, places[level]][:, :, :, None]
            turned = torch.linalg.pinv(after) @ turned
        if level > 0:
            turned = turned @ bases[level - 1][:, places[level]][:, :, None]
        factors.append(_as_numbers(turned))
    return torch.stack(factors, 1)


def _as_numbers(block: Float[Tensor, "*blocks outputs inputs"]) -> Complex[Tensor, "*blocks"]:
    """A real number to a plane, a plane to its real part, or the nearest multiple of a rotation."""
    if block.shape[-1] == 1:
        return torch.complex(block[..., 0, 0], block[..., 1, 0])
    if block.shape[-2] == 1:
        return torch.complex(block[..., 0, 0], -block[..., 0, 1])
    real, imaginary = block[..., 0, 0] + block[..., 1, 1], block[..., 1, 0] - block[..., 0, 1]
    return torch.complex(real, imaginary) / 2


def _planar(
    matrices: Float[Tensor, "count side outputs side inputs"],
) -> list[Tensor]:
    """Factors (count, pairs, 2, outputs, 2, inputs) of increasing stride, by SVDs of rank two."""
    count, side, outputs, _, inputs = matrices.shape
    levels = side.bit_length() - 1
    if levels == 1:
        return [matrices[:, None]]
    high, low = 1 << levels // 2, 1 << (levels - levels // 2)
    slices = matrices.reshape(count, high, low, outputs, high, low, inputs)
    slices = slices.permute(0, 2, 4, 1, 3, 5, 6).flatten(5).flatten(3, 4)
    left, singular, right = torch.linalg.svd(slices, full_matrices=False)
    root = singular[..., :2].sqrt()
    columns = (left[..., :2] * root[..., None, :]).unflatten(3, (high, outputs))
    rows = (right[..., :2, :] * root[..., None]).unflatten(4, (low, inputs))
    longer = _planar(columns.permute(0, 1, 3, 4, 2, 5).flatten(0, 1))
    shorter = _planar(rows.transpose(1, 2).flatten(0, 1))
    return [
        *(factor.reshape(count, side // 2, *factor.shape[2:]) for factor in shorter),
        *(factor.unflatten(0, (count, low)).transpose(1, 2).flatten(1, 2) for factor in longer),
    ]


def _carried(
    blocks: list[Tensor], places: list[Tensor], copies: int, side: int
) -> list[Float[Tensor, "copies side 2 2"]]:
    """The map from its tree's root to every plane: forward from the root, else from the end."""
    inner = len(blocks) - 1
    carried = [blocks[0].new_zeros(copies, side, 2, 2) for _ in range(inner)]
    half = side // 2
    carried[0][:, [0, 1, half, half + 1]] = torch.eye(2).to(carried[0])
    for level in range(1, inner):
        place = places[level]
        reached = blocks[level] @ carried[level - 1][:, place][:, :, None]
        carried[level][:, place] = _unit(reached.sum(3))  # of the two inputs, one was reached
    for level in range(inner - 1, 0, -1):
        place = places[level]
        back = torch.linalg.pinv(blocks[level]) @ carried[level][:, place][:, :, :, None]
        sound = _soundness(back)
        second = (sound[:, :, 1] > sound[:, :, 0])[..., None, None]
        best = _unit(torch.where(second, back[:, :, 1], back[:, :, 0]))
        known = carried[level - 1][:, place]
        is_known = (known.abs().sum((-1, -2)) > 0)[..., None, None]
        carried[level - 1][:, place] = torch.where(is_known, known, best)
    return carried


def _complex_structures(
    blocks: list[Tensor], places: list[Tensor], carried: list[Tensor], tree: Tensor
) -> Float[Tensor, "copies 4 2 2"]:
    """J at each tree's root."""
    basis = TRACELESS.to(blocks[0])
    problem = basis.new_zeros(len(blocks[0]), 4, 3, 3)
    weight = basis.new_zeros(len(blocks[0]), 4)
    for level in range(1, len(blocks) - 1):
        place = places[level]
        after = torch.linalg.pinv(carried[level][:, place])[:, :, :, None]
        around = after @ blocks[level] @ carried[level - 1][:, place][:, :, None]
        around = around / around.square().sum((-1, -2), keepdim=True).clamp_min(TINY).sqrt()
        sound = _soundness(around)
        around = (around * sound[..., None, None])[..., None, :, :]
        commutator = (around @ basis - basis @ around).flatten(-2)
        owner = tree[place[:, 0]]
        problem.index_add_(1, owner, (commutator @ commutator.mT).sum((2, 3)))
        weight.index_add_(1, owner, sound.square().sum((2, 3)))
    size, vectors = torch.linalg.eigh(problem)
    found = torch.einsum("...k,kab->...ab", vectors[..., 0], basis)
    square = torch.linalg.det(found)
    is_free = (size[..., -1] <= FREE * weight) | (square <= FREE)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).to(basis)
    found = found / square.clamp_min(TINY).sqrt()[..., None, None]
    return torch.where(is_free[..., None, None], turn, found)


def _unit(maps: Float[Tensor, "*maps 2 2"]) -> Float[Tensor, "*maps 2 2"]:
    """With determinant 1 or -1; zeros where a plane was lost."""
    root = torch.linalg.det(maps).abs().sqrt()
    is_sound = _soundness(maps) > FREE
    scale = torch.where(is_sound, 1 / root.clamp_min(TINY), torch.zeros_like(root))
    return maps * scale[..., None, None]


def _soundness(maps: Float[Tensor, "*maps 2 2"]) -> Float[Tensor, "*maps"]:
    """How far from singular: a half of a rotation, 0 of rank one."""
    area: Tensor = torch.linalg.det(maps).abs()
    return area / maps.square().sum((-1, -2)).clamp_min(TINY)
