"""Low-rank approximation of every block of a grid at once, of the matrix or of its outputs.

Notation: W_ij is the block of row band i and column group J, C = E[x x^T], R what is left of W.
With the other blocks fixed, the best X in place of W_ij minimises ||(X - G) L||^2, where
C[J, J] = L L^T and G = X + R_i C[:, J] C[J, J]^-1: the truncated SVD of G L, times L^-1. Bands do
not meet in the output error, so all blocks of a column group are found in one batch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from models.structured.output_error import regularised

MAXIMUM_SWEEPS = 30
# A sweep that removes less than this share of the matrix's energy is the last.
SMALLEST_GAIN = 1e-6


@dataclass(frozen=True, slots=True)
class BlockTerms:
    """Terms of every block, by falling energy: their sum over `left` times `right` is the block."""

    left: Float[Tensor, "bands groups height terms"]
    right: Float[Tensor, "bands groups terms width"]
    energies: Float[Tensor, "bands groups terms"]


def cut(
    weight: Float[Tensor, "rows columns"], *, row_blocks: int, column_blocks: int
) -> Float[Tensor, "row_blocks column_blocks height width"]:
    """The blocks in float64, padded with zeros where they do not divide the matrix."""
    rows, columns = weight.shape
    height, width = -(-rows // row_blocks), -(-columns // column_blocks)
    missing = (0, column_blocks * width - columns, 0, row_blocks * height - rows)
    matrix = functional.pad(weight.detach().double(), missing)
    return matrix.view(row_blocks, height, column_blocks, width).transpose(1, 2)


def grid_moment(
    second_moment: Float[Tensor, "columns columns"], padded_columns: int
) -> Float[Tensor, "padded padded"]:
    """C made invertible, with white noise in the columns that are padding: they stay zero."""
    moment = regularised(second_moment)
    missing = padded_columns - len(moment)
    whole = functional.pad(moment, (0, missing, 0, missing))
    whole.diagonal()[len(moment) :] = moment.diagonal().mean()
    return whole


def decompose_blocks(
    blocks: Float[Tensor, "bands groups height width"],
    moment: Float[Tensor, "columns columns"] | None = None,
) -> BlockTerms:
    """All terms of every block; given C, those of its own outputs, whatever the others do."""
    if moment is None:
        return BlockTerms(*_terms(blocks))
    lower = _roots(moment, blocks.shape[3])
    left, right, energies = _terms(blocks @ lower)
    right = torch.linalg.solve_triangular(lower.expand(len(right), -1, -1, -1), right, **_ON_RIGHT)
    return BlockTerms(left, right, energies)


def fit_blocks(
    weight: Float[Tensor, "rows columns"],
    ranks: Int[Tensor, "bands groups"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> BlockTerms:
    """The blocks' best approximations of these ranks, each term's two sides of equal norm.

    Exact without C. With it, descent over the column groups from the best of three starts (zero,
    the plain approximation, each block for its own outputs), never worse than any of them.
    """
    bands, groups = ranks.shape
    blocks = cut(weight, row_blocks=bands, column_blocks=groups)
    terms = int(ranks.max())
    keep = torch.arange(terms) < ranks[:, :, None]
    plain = _kept(decompose_blocks(blocks), keep)
    if second_moment is None:
        return _balanced(plain)
    moment = grid_moment(second_moment, groups * blocks.shape[3])
    own = _kept(decompose_blocks(blocks, moment), keep)
    zero = BlockTerms(*(torch.zeros_like(part) for part in (own.left, own.right, own.energies)))
    starts = [zero, plain, own]
    errors = [_error(_rest(blocks, start), moment) for start in starts]
    return _balanced(_descend(blocks, starts[errors.index(min(errors))], keep, moment))


def term_products(
    terms: BlockTerms, moment: Float[Tensor, "columns columns"]
) -> Float[Tensor, "bands terms terms"]:
    """<A, B C> of any two terms A, B of one row band: their sum over a set is its output energy."""
    bands, groups, height, count = terms.left.shape
    width = terms.right.shape[3]
    rows = terms.right.reshape(bands, groups * count, width)
    by_group = moment.view(groups, width, groups * width)
    products = rows.new_empty(bands, groups, count, groups, count)
    for group in range(groups):
        spread = (terms.right[:, group] @ by_group[group]).view(bands, count, groups, width)
        products[:, group] = torch.einsum("bkgw,bglw->bkgl", spread, terms.right)
    left = terms.left.permute(0, 2, 1, 3).reshape(bands, height, groups * count)
    return products.view(bands, groups * count, groups * count) * (left.mT @ left)


def removed_energies(
    products: Float[Tensor, "bands terms terms"], places: Int[Tensor, "bands terms"]
) -> Float[Tensor, "bands terms"]:
    """By how much the output error falls as each term is added, in the order of `places`."""
    order = places.argsort(-1)
    square = order[:, :, None].expand_as(products)
    across = order[:, None, :].expand_as(products)
    ordered = products.gather(1, square).gather(2, across)
    left = ordered.flip(1, 2).cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2).flip(1)
    falls = left - functional.pad(left[:, 1:], (0, 1))
    return torch.zeros_like(falls).scatter(1, order, falls)


_ON_RIGHT = {"upper": False, "left": False}


def _roots(moment: Tensor, width: int) -> Tensor:
    """L of every column group, `groups x width x width`."""
    groups = len(moment) // width
    inner = moment.view(groups, width, groups, width).diagonal(dim1=0, dim2=2)
    found: Tensor = torch.linalg.cholesky(inner.permute(2, 0, 1))
    return found


def _terms(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right sides and energies of the SVD, by the eigenvectors of the smaller Gram."""
    if matrices.shape[-2] > matrices.shape[-1]:
        right, left, energies = _terms(matrices.mT)
        return left.mT, right.mT, energies
    basis = torch.linalg.eigh(matrices @ matrices.mT).eigenvectors.flip(-1)
    other = basis.mT @ matrices
    return basis, other, other.square().sum(-1)


def _kept(terms: BlockTerms, keep: Bool[Tensor, "bands groups terms"]) -> BlockTerms:
    count = keep.shape[2]
    return BlockTerms(
        terms.left[..., :count] * keep[:, :, None, :],
        terms.right[:, :, :count] * keep[..., None],
        terms.energies[..., :count] * keep,
    )


def _rest(blocks: Tensor, terms: BlockTerms) -> Tensor:
    """What is left of every row band, `bands x height x columns`."""
    return (blocks - terms.left @ terms.right).transpose(1, 2).flatten(2)


def _error(rest: Tensor, moment: Tensor) -> float:
    return float(((rest @ moment) * rest).sum())


def _descend(blocks: Tensor, start: BlockTerms, keep: Tensor, moment: Tensor) -> BlockTerms:
    bands, groups, _, width = blocks.shape
    left, right = start.left.clone(), start.right.clone()
    lower = _roots(moment, width)
    rest = _rest(blocks, start)
    energy = _error(blocks.transpose(1, 2).flatten(2), moment)
    before = _error(rest, moment)
    for _ in range(MAXIMUM_SWEEPS):
        seen = rest @ moment
        for group in range(groups):
            inside = slice(group * width, (group + 1) * width)
            old = left[:, group] @ right[:, group]
            target = seen[:, :, inside] + old @ moment[inside, inside]
            root = lower[group].expand(bands, -1, -1)
            whitened = torch.linalg.solve_triangular(root.mT, target, upper=True, left=False)
            new = _kept(BlockTerms(*(one[:, None] for one in _terms(whitened))), keep[:, [group]])
            left[:, group] = new.left[:, 0]
            right[:, group] = torch.linalg.solve_triangular(root, new.right[:, 0], **_ON_RIGHT)
            change = old - left[:, group] @ right[:, group]
            rest[:, :, inside] += change
            seen += change @ moment[inside]
        after = _error(rest, moment)
        if before - after <= SMALLEST_GAIN * energy:
            break
        before = after
    return BlockTerms(left, right, start.energies)


def _balanced(terms: BlockTerms) -> BlockTerms:
    """The same terms with equal norms on both sides, which gradient descent likes."""
    left, right = terms.left.norm(dim=2), terms.right.norm(dim=3)
    live = (left > 0) & (right > 0)
    scale = torch.where(live, right / left.where(live, torch.ones_like(left)), 1).sqrt()
    return BlockTerms(
        terms.left * scale[:, :, None, :], terms.right / scale[..., None], terms.energies
    )
