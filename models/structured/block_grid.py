"""Low-rank approximation of every block of a grid at once, of the matrix or of its outputs.

Notation: W_ij is the block of row band i and column group J, C = E[x x^T], R what is left of W.
With the other blocks fixed, the best X in place of W_ij minimises ||(X - G) L||^2, where
C[J, J] = L L^T and G = X + R_i C[:, J] C[J, J]^-1: the truncated SVD of G L, times L^-1. Bands do
not meet in the output error, so all blocks of a column group are found in one batch. All of this is
done with W L and L^-1 C L^-T of every column group's L, where each group's inputs are white.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from models.structured.low_rank import balancing
from models.structured.output_error import latest, outputs, regularised

MAXIMUM_SWEEPS = 20
# A sweep that removes less than this share of the matrix's energy is the last.
SMALLEST_GAIN = 1e-4
# Columns for which it is found at once what they see: a product of a few alone is slow.
NARROW = 64
# Of a term's energy: right sides that depend on each other must not stop a decomposition.
RIDGE = 1e-9


@dataclass(frozen=True, slots=True)
class BlockTerms:
    """Terms of every block, by falling energy: their sum over `left` times `right` is the block."""

    left: Float[Tensor, "bands groups height terms"]
    right: Float[Tensor, "bands groups terms width"]
    energies: Float[Tensor, "bands groups terms"]

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.left, self.right, self.energies


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


def decompose_blocks(blocks: Float[Tensor, "bands groups height width"]) -> BlockTerms:
    """All terms of every block, by the eigenvectors of the smaller Gram matrix."""
    if blocks.shape[-2] > blocks.shape[-1]:
        found = decompose_blocks(blocks.mT)
        return BlockTerms(found.right.mT, found.left.mT, found.energies)
    basis = torch.linalg.eigh(blocks @ blocks.mT).eigenvectors.flip(-1)
    other = basis.mT @ blocks
    return BlockTerms(basis, other, other.square().sum(-1))


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
    terms = int(ranks.max())
    keep = torch.arange(terms) < ranks[:, :, None]
    if second_moment is None:
        blocks = cut(weight, row_blocks=bands, column_blocks=groups)
        return _balanced(_kept(decompose_blocks(blocks), keep))
    white = _white(weight, second_moment, row_blocks=bands, column_blocks=groups)
    plain, own = _kept(white.plain, keep), white.refitted(_kept(white.own, keep))
    zero = BlockTerms(*(torch.zeros_like(part) for part in own.parts))
    starts = [(white.energy, zero), (white.error(plain), plain), (white.error(own), own)]
    found = _descend(white, min(starts, key=lambda one: one[0])[1], keep)
    return _balanced(white.dyed(found))


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
    return _white(weight, second_moment, **grid).own_equations


@final
class _White:
    """A matrix, what is known of it, and its C, in units in which each column group is white."""

    def __init__(
        self, weight: Tensor, second_moment: Tensor, *, row_blocks: int, column_blocks: int
    ) -> None:
        plain = cut(weight, row_blocks=row_blocks, column_blocks=column_blocks)
        groups, width = column_blocks, plain.shape[3]
        self._plain = plain
        self._moment = grid_moment(second_moment, groups * width)
        inner = self._moment.view(groups, width, groups, width).diagonal(dim1=0, dim2=2)
        self.lower: Tensor = torch.linalg.cholesky(inner.permute(2, 0, 1))
        self.blocks = plain @ self.lower
        weighted = outputs(weight, second_moment)
        self._outputs = cut(weighted, row_blocks=row_blocks, column_blocks=column_blocks)

    @cached_property
    def own(self) -> BlockTerms:
        """Each block's terms for its own outputs, whatever the others do."""
        return decompose_blocks(self.blocks)

    @cached_property
    def plain(self) -> BlockTerms:
        """Each block's terms for the weight."""
        found = decompose_blocks(self._plain)
        return BlockTerms(found.left, found.right @ self.lower, found.energies)

    @cached_property
    def own_equations(self) -> NormalEquations:
        """Those of each block's own terms, without the moment of white inputs, which is dear."""
        return _normal_equations(self.dyed(self.own), self._outputs, self._moment)

    @cached_property
    def moment(self) -> Float[Tensor, "columns columns"]:
        """C, in which the blocks on the diagonal have become the identity."""
        groups, width, _ = self.lower.shape
        half = torch.linalg.solve_triangular(
            self.lower, self._moment.view(groups, width, -1), upper=False
        )
        half = half.reshape(-1, groups, width).transpose(0, 1)
        whole: Tensor = torch.linalg.solve_triangular(self.lower.mT, half, upper=True, left=False)
        return whole.transpose(0, 1).reshape_as(self._moment)

    @cached_property
    def seen(self) -> Float[Tensor, "bands groups height width"]:
        """The blocks of W C."""
        bands, groups, height, width = self.blocks.shape
        seen = self._outputs.transpose(0, 1).reshape(groups, bands * height, width)
        white: Tensor = torch.linalg.solve_triangular(self.lower.mT, seen, upper=True, left=False)
        return white.view(groups, bands, height, width).transpose(0, 1)

    @cached_property
    def wanted(self) -> Float[Tensor, "bands height columns"]:
        """W C."""
        return self.seen.transpose(1, 2).flatten(2)

    @cached_property
    def energy(self) -> float:
        """The squared error of zero."""
        return float((self.blocks * self.seen).sum())

    def error(self, terms: BlockTerms) -> float:
        """What terms leave of the outputs."""
        rest = _side_by_side(self.blocks - terms.left @ terms.right)
        return float(((rest @ self.moment) * rest).sum())

    def seen_by(
        self, columns: slice, left: Tensor, right: Tensor
    ) -> Float[Tensor, "bands height columns"]:
        """What terms leave, times C, in some columns: in far fewer steps than from what is left."""
        bands, groups, count, width = right.shape
        of_groups = right.transpose(0, 1).reshape(groups, bands * count, width)
        spread = of_groups @ self.moment.view(groups, width, -1)[..., columns]
        spread = spread.view(groups, bands, count, -1).transpose(0, 1).flatten(1, 2)
        return torch.baddbmm(
            self.wanted[..., columns], left.transpose(1, 2).flatten(2), spread, alpha=-1
        )

    def dyed(self, terms: BlockTerms) -> BlockTerms:
        """The same terms in the units of the inputs as they are."""
        bands, groups, count, width = terms.right.shape
        right = terms.right.transpose(0, 1).reshape(groups, bands * count, width)
        right = torch.linalg.solve_triangular(self.lower, right, upper=False, left=False)
        right = right.view(groups, bands, count, width).transpose(0, 1)
        return BlockTerms(terms.left, right, terms.energies)

    def refitted(self, terms: BlockTerms) -> BlockTerms:
        """The same right sides with the best left sides, those of a band together."""
        found = _normal_equations(terms, self.seen, self.moment)
        bands, groups, _, count = terms.left.shape
        left = torch.cholesky_solve(found.cross.mT, torch.linalg.cholesky(found.square)).mT
        left = left.view(bands, -1, groups, count).transpose(1, 2)
        return BlockTerms(left, terms.right, terms.energies)


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


def _white(weight: Tensor, second_moment: Tensor, *, row_blocks: int, column_blocks: int) -> _White:
    """What a curve and all fits of one grid have in common."""
    grid = {"row_blocks": row_blocks, "column_blocks": column_blocks}
    subject = ("blocks", row_blocks, column_blocks)
    return latest(subject, weight, second_moment, lambda: _White(weight, second_moment, **grid))


def _side_by_side(blocks: Tensor) -> Float[Tensor, "rows columns"]:
    return blocks.transpose(1, 2).flatten(2).flatten(0, 1)


def _kept(terms: BlockTerms, keep: Bool[Tensor, "bands groups terms"]) -> BlockTerms:
    count = keep.shape[2]
    return BlockTerms(
        terms.left[..., :count] * keep[:, :, None, :],
        terms.right[:, :, :count] * keep[..., None],
        terms.energies[..., :count] * keep,
    )


def _descend(white: _White, start: BlockTerms, keep: Tensor) -> BlockTerms:
    """Sweep over the column groups; what they see is found of several narrow ones at a time."""
    _, groups, _, width = white.blocks.shape
    left, right = start.left.clone(), start.right.clone()
    together = max(1, NARROW // width)
    for sweep in range(MAXIMUM_SWEEPS):
        gain = 0.0
        for first in range(0, groups, together):
            last = min(first + together, groups)
            ahead = slice(first * width, last * width)
            seen = white.seen_by(ahead, left, right)
            for group in range(first, last):
                inside = slice((group - first) * width, (group + 1 - first) * width)
                here = seen[..., inside]
                old = left[:, group] @ right[:, group]
                target = here + old
                if sweep == 0:
                    terms = _kept(decompose_blocks(target[:, None]), keep[:, group, None])
                    basis, other, _ = (part[:, 0] for part in terms.parts)
                else:
                    # Left for the right sides there are, then right for that left: far cheaper.
                    basis = _orthonormal(target @ right[:, group].mT)
                    other = basis.mT @ target * keep[:, group, :, None]
                left[:, group], right[:, group] = basis, other
                change = old - basis @ other
                gain -= float(torch.add(change, here, alpha=2).mul_(change).sum())
                if group + 1 < last:
                    beside = white.moment[group * width : (group + 1) * width, ahead]
                    seen[..., inside.stop :] += change @ beside[:, inside.stop :]
        if gain <= SMALLEST_GAIN * white.energy:
            break
    return BlockTerms(left, right, start.energies)


def _orthonormal(columns: Float[Tensor, "bands height terms"]) -> Tensor:
    if columns.shape[2] == 1:  # a tenth of the time
        size: Tensor = columns.norm(dim=1, keepdim=True)
        return columns / size.where(size > 0, torch.ones_like(size))
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _balanced(terms: BlockTerms) -> BlockTerms:
    """The same terms with equal norms on both sides, which gradient descent likes."""
    scale = balancing(terms.left.norm(dim=2), terms.right.norm(dim=3))
    return BlockTerms(
        terms.left * scale[:, :, None, :], terms.right / scale[..., None], terms.energies
    )
