"""Which tiles the outputs of a matrix need most, one after the other in each band of rows.

Notation: a band is W_i, of which tiles J were taken; R_i = W_i - X_i is what the best X_i on these
leaves, G = R_i C its cross-moment. Row bands do not meet in the output error. One more tile p
removes tr(G_p S_p^-1 G_p^T), where S = C - C[:, J] C[J, J]^-1 C[J, :] = C - V^T V, S_p its block
(block orthogonal least squares: Chen et al., Int. J. Control 50, 1989). Each V grows by t rows with
a tile. As that becomes dear, further tiles are chosen and fitted without a change of those taken
(matching pursuit: Mallat & Zhang, IEEE Trans. Signal Processing 41, 1993): S = C, and what they
remove is a bound from below.
"""

import torch
from jaxtyping import Float, Int
from scipy.optimize import isotonic_regression
from torch import Tensor

# Multiplications for all V of a choice, and numbers that these may hold; then it is a pursuit.
WORK, STORED = 1e9, 3e7
# Multiplications of the Cholesky decompositions that measure a choice: some tenths of a second.
MEASURED = 4e9
# Of a tile's unit variances: tiles that depend on each other must not stop a decomposition.
RIDGE = 1e-10
# More than float32 loses of what a pursuit removes, as a share of it.
ROUNDED = 1e-5


def choose(
    outputs: Float[Tensor, "rows columns"], moment: Float[Tensor, "columns columns"], *, tile: int
) -> tuple[Int[Tensor, " tiles"], Float[Tensor, "bands groups"]]:
    """All tiles of W in an order of falling gain, given W C; and each band's gains in that order.

    A tile's place counts through the grid row by row. Every prefix has what its bands took first:
    where a tile only pays off together with later ones of its band, they come at their mean gain.
    """
    picks, gains = _take(outputs, moment, tile)
    levels = [isotonic_regression(one.numpy(), increasing=False).x for one in gains]
    level = torch.cat([torch.tensor(one.tolist(), dtype=gains.dtype) for one in levels])
    places = picks + torch.arange(len(picks))[:, None] * picks.shape[1]
    return places.flatten()[level.argsort(descending=True, stable=True)], gains


def explained(
    outputs: Float[Tensor, "rows columns"],
    moment: Float[Tensor, "columns columns"],
    places: Int[Tensor, " tiles"],
    gains: Float[Tensor, "bands groups"],
) -> Float[Tensor, " tiles"]:
    """What the first 1, 2, ... tiles remove of the error of the outputs, fitted together.

    `outputs` is W C. Exact as far as `MEASURED` goes; behind that, a bound from below by `gains`.
    """
    bands, groups = gains.shape
    tile = len(moment) // groups
    band = places // groups
    in_bands = band.argsort(stable=True).view(bands, groups)
    counts = _measurable(in_bands, tile)
    picks = (places % groups)[in_bands]
    # Tile by tile: what a band takes of it then lies in few long pieces.
    by_tile = moment.view(groups, tile, groups, tile).transpose(1, 2).flatten(0, 1).contiguous()
    wanted = outputs.view(bands, tile, groups, tile)
    total = gains.cumsum(1)
    for index, count in enumerate(counts):
        if count == 0:
            continue
        chosen = picks[index, :count]
        pairs = (chosen[:, None] * groups + chosen).flatten()
        square = by_tile.index_select(0, pairs).view(count, count, tile, tile).transpose(1, 2)
        root = torch.linalg.cholesky(square.reshape(count * tile, count * tile))
        right = wanted[index].index_select(1, chosen).flatten(1).T
        solved = torch.linalg.solve_triangular(root, right, upper=False)
        exact = solved.square().sum(1).view(count, tile).sum(1).cumsum(0)
        total[index, :count] = exact
        total[index, count:].clamp_(min=exact[-1])
    falls = total.diff(dim=1, prepend=total.new_zeros(bands, 1))
    return falls.new_empty(len(places)).scatter(0, in_bands.flatten(), falls.flatten()).cumsum(0)


def _measurable(in_bands: Int[Tensor, "bands groups"], tile: int) -> list[int]:
    """Of each band the tiles within those first of all whose Cholesky factors are affordable."""
    bands, groups = in_bands.shape
    sides = tile * torch.arange(groups + 1, dtype=torch.float64)
    work = sides.pow(3).div(3).diff().expand(bands, groups).flatten()
    spent = torch.empty_like(work).scatter(0, in_bands.flatten(), work).cumsum(0)
    inside = spent <= MEASURED
    return inside[in_bands].sum(1).tolist()


def _take(
    outputs: Float[Tensor, "rows columns"], moment: Float[Tensor, "columns columns"], tile: int
) -> tuple[Int[Tensor, "bands groups"], Float[Tensor, "bands groups"]]:
    """The tiles of each band in the order in which they are taken, and what each removes."""
    groups, bands = len(moment) // tile, len(outputs) // tile
    white, inverse = _whitened(moment, tile)
    rest = torch.einsum("bsgk,glk->bsgl", outputs.view(bands, tile, groups, tile), inverse)
    rest = rest.flatten(2).contiguous()
    numbers = bands * len(moment)
    most = int(min((2 * WORK / numbers) ** 0.5, STORED / numbers) / tile)
    most = min(groups, most)
    picks = torch.zeros(bands, groups, dtype=torch.long)
    gains = rest.new_zeros(bands, groups)
    _fit_together(rest, white, picks[:, :most], gains[:, :most])
    _pursue(rest, white, picks, gains, start=most)
    return picks, gains


def _fit_together(rest: Tensor, white: Tensor, picks: Tensor, gains: Tensor) -> None:
    """Take tiles of all bands at once and, with each, fit again those taken before."""
    groups, tile, columns = white.shape
    bands, count = picks.shape
    known = rest.new_empty(bands, count * tile, columns)
    # S on its diagonal; a tile that is taken is never asked for again.
    unit = torch.eye(tile).to(rest) * (1 + RIDGE)
    inner = unit.repeat(bands, groups, 1, 1)
    every = torch.arange(bands)
    free = torch.ones(bands, groups, dtype=torch.bool)
    for step in range(count):
        parts = rest.unflatten(2, (groups, tile)).permute(0, 2, 3, 1)
        root = torch.linalg.cholesky(inner)
        solved = torch.linalg.solve_triangular(root, parts, upper=False)
        pick = torch.where(free, solved.square().sum((2, 3)), -1).argmax(1)
        free[every, pick] = False
        before = known[:, : step * tile]
        here = before.unflatten(2, (groups, tile))[every, :, pick]
        new = torch.baddbmm(white[pick], here.mT, before, alpha=-1)
        new = torch.linalg.solve_triangular(root[every, pick], new, upper=False)
        removed = solved[every, pick].mT
        rest.baddbmm_(removed, new, alpha=-1)
        known[:, step * tile : (step + 1) * tile] = new
        spread = new.unflatten(2, (groups, tile)).transpose(1, 2)
        inner -= spread.mT @ spread
        inner[every, pick] = unit
        picks[:, step], gains[:, step] = pick, removed.square().sum((1, 2))


def _pursue(rest: Tensor, white: Tensor, picks: Tensor, gains: Tensor, *, start: int) -> None:
    """Take the other tiles of each band, by itself: what one step needs stays in the cache."""
    groups, tile, _ = white.shape
    if start == groups:
        return
    # Half the time in float32, whose rounding must not make a bound of what is none.
    peak = rest.abs().max().clamp(min=torch.finfo(rest.dtype).tiny)
    narrow = white.float()
    scale = peak.square() * (1 - ROUNDED)
    for left, taken, removed in zip(rest, picks, gains, strict=True):
        parts = (left / peak).float().T.contiguous()
        by_tile = parts.view(groups, tile, tile)
        closed = torch.zeros(groups)
        closed[taken[:start]] = torch.inf
        for step in range(start, groups):
            scores = torch.linalg.vector_norm(by_tile, dim=(1, 2)) - closed
            score, best = scores.max(0)
            index = int(best)
            closed[index] = torch.inf
            removed[step], taken[step] = score, best
            parts.addmm_(narrow[index].T, by_tile[index].clone(), alpha=-1)
        removed[start:] = removed[start:].square() * scale


def _whitened(
    moment: Float[Tensor, "columns columns"], tile: int
) -> tuple[Float[Tensor, "groups tile columns"], Float[Tensor, "groups tile tile"]]:
    """L^-1 C L^-T and L^-1, where L L^T are the blocks of C on its diagonal."""
    by_tile = moment.unflatten(0, (-1, tile))
    inner = by_tile.unflatten(2, (-1, tile)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    root = torch.linalg.cholesky(inner)
    unit = torch.eye(tile).to(root).expand_as(root)
    inverse = torch.linalg.solve_triangular(root, unit, upper=False)
    white = torch.bmm(inverse, by_tile).unflatten(2, (-1, tile)).permute(2, 0, 1, 3)
    white = torch.bmm(white.flatten(1, 2).view(len(root), -1, tile), inverse.mT)
    return white.view(len(root), len(root), tile, tile).permute(1, 2, 0, 3).flatten(2), inverse
