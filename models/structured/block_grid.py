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

from models.structured.output_error import latest, outputs, regularised

MAXIMUM_SWEEPS = 20
# A sweep that removes less than this share of the matrix's energy is the last.
SMALLEST_GAIN = 1e-4
# Of a term's energy: right sides that depend on each other must not stop a decomposition.
RIDGE = 1e-9


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
    """C made invertible, with white noise in the columns that are padding: they stay zero.

    The answer must not be changed in place.
    """
    moment = regularised(second_moment)
    missing = padded_columns - len(moment)
    if not missing:
        return moment
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
    the plain approximation, each block's right side for its own outputs), never worse than any.
    """
    bands, groups = ranks.shape
    blocks = cut(weight, row_blocks=bands, column_blocks=groups)
    terms = int(ranks.max())
    keep = torch.arange(terms) < ranks[:, :, None]
    plain = _kept(decompose_blocks(blocks), keep)
    if second_moment is None:
        return _balanced(plain)
    moment = grid_moment(second_moment, groups * blocks.shape[3])
    seen = cut(outputs(weight, second_moment), row_blocks=bands, column_blocks=groups)
    own = _refitted(_kept(decompose_blocks(blocks, moment), keep), seen, moment)
    zero = BlockTerms(*(torch.zeros_like(part) for part in (own.left, own.right, own.energies)))
    starts = [zero, plain, own]
    errors = [_error(_rest(blocks, start), moment) for start in starts]
    return _balanced(_descend(blocks, starts[errors.index(min(errors))], keep, moment))


@dataclass(frozen=True, slots=True)
class NormalEquations:
    """K = V C V^T and B = W C V^T for the right sides V of a band's terms, each of some energy."""

    square: Float[Tensor, "bands terms terms"]
    cross: Float[Tensor, "bands height terms"]
    energies: Float[Tensor, "bands groups terms"]

    def explained(self, places: Int[Tensor, "bands terms"]) -> Float[Tensor, "bands terms"]:
        """By how much the output error falls as each term joins its band, in this order.

        The right sides are given, and all left sides of a band are the best for the terms so far:
        by one Cholesky decomposition for all sizes.
        """
        order = places.argsort(-1)
        ordered = self.square.gather(1, order[:, :, None].expand_as(self.square))
        ordered = ordered.gather(2, order[:, None, :].expand_as(self.square))
        wanted = self.cross.gather(2, order[:, None, :].expand_as(self.cross))
        root = torch.linalg.cholesky(ordered)
        falls = torch.linalg.solve_triangular(root, wanted.mT, upper=False).square()
        return torch.zeros_like(places, dtype=falls.dtype).scatter(1, order, falls.sum(-1))


def own_terms(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"],
    *,
    row_blocks: int,
    column_blocks: int,
) -> NormalEquations:
    """Those of the right sides that are each block's best for its own outputs, of all ranks.

    They are the same for every structure of low-rank blocks, which asks one after the other.
    """
    grid = {"row_blocks": row_blocks, "column_blocks": column_blocks}

    def found() -> NormalEquations:
        blocks = cut(weight, **grid)
        moment = grid_moment(second_moment, column_blocks * blocks.shape[3])
        terms = decompose_blocks(blocks, moment)
        return _normal_equations(terms, cut(outputs(weight, second_moment), **grid), moment)

    return latest(("blocks", row_blocks, column_blocks), weight, second_moment, found)


def _normal_equations(terms: BlockTerms, seen: Tensor, moment: Tensor) -> NormalEquations:
    """Those of the terms of every band, K with a little ridge; `seen` are the blocks of W C."""
    bands, groups, count, width = terms.right.shape
    by_group = moment.view(groups, width, groups * width)
    square = moment.new_empty(bands, groups, count, groups, count)
    for group in range(groups):
        spread = terms.right[:, group] @ by_group[group, :, group * width :]
        parts = spread.view(bands, count, groups - group, width)
        half = torch.einsum("bkgw,bglw->bkgl", parts, terms.right[:, group:])
        square[:, group, :, group:] = half
        square[:, group:, :, group] = half.permute(0, 2, 3, 1)
    cross = (seen @ terms.right.mT).transpose(1, 2)
    square = square.view(bands, groups * count, groups * count)
    scale = square.diagonal(dim1=1, dim2=2)
    # Terms left out have no right side: the ridge keeps their left side zero.
    square.diagonal(dim1=1, dim2=2).add_(torch.where(scale > 0, RIDGE * scale, 1))
    return NormalEquations(square, cross.flatten(2), terms.energies)


def _refitted(terms: BlockTerms, seen: Tensor, moment: Tensor) -> BlockTerms:
    """The same right sides with the best left sides, those of a band together."""
    found = _normal_equations(terms, seen, moment)
    bands, groups, _, count = terms.left.shape
    left = torch.cholesky_solve(found.cross.mT, torch.linalg.cholesky(found.square)).mT
    left = left.view(bands, -1, groups, count).transpose(1, 2)
    return BlockTerms(left, terms.right, terms.energies)


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
    seen = rest @ moment
    before = float((seen * rest).sum())
    for sweep in range(MAXIMUM_SWEEPS):
        for group in range(groups):
            inside = slice(group * width, (group + 1) * width)
            old = left[:, group] @ right[:, group]
            target = seen[:, :, inside] + old @ moment[inside, inside]
            root = lower[group].expand(bands, -1, -1)
            whitened = torch.linalg.solve_triangular(root.mT, target, upper=True, left=False)
            if sweep == 0:
                basis, other, _ = _terms(whitened)
                basis, other = basis[..., : keep.shape[2]], other[:, : keep.shape[2]]
            else:
                # Left for the right sides there are, then right for that left: far cheaper.
                basis = torch.linalg.qr(whitened @ (right[:, group] @ root).mT).Q
                other = basis.mT @ whitened
            left[:, group] = basis
            other = other * keep[:, group, :, None]
            right[:, group] = torch.linalg.solve_triangular(root, other, **_ON_RIGHT)
            change = old - left[:, group] @ right[:, group]
            rest[:, :, inside] += change
            seen += change @ moment[inside]
        seen = rest @ moment  # anew: what was added to it has rounding errors
        after = float((seen * rest).sum())
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
