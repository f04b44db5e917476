"""The nearest BLAST to a matrix, by alternating exact least squares with extrapolation.

Given two of U, V and s, the third is a least-squares problem: one r x r system for each row band,
column band or block. Every step solves for the increment, with the least ridge that is definite: so
no step raises the error, and directions without effect stay where they are. Between the sweeps the
factors are extrapolated by Nesterov's rule, until the error rises (Mitchell, Ye & De Sterck, 2020,
arXiv 1810.05846).

    i, j   row band, column band
    k, l   rank
    p, q   row in a band, column in a band
    G      Gram matrices: U_i^T U_i or V_j^T C_jj' V_j'
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.structured.low_rank import LARGE, leading_factors
from models.structured.output_error import regularised

# Sweeps do at most this many multiply-accumulates, some seconds on one core, within these bounds.
WORK = 4e10
FEWEST, MOST = 20, 300
TRIAL = 30  # sweeps after which the best of several starts is chosen
RANDOM_STARTS = 2  # besides the low-rank one, where sweeps are cheap
# An error that falls by a smaller share in so many sweeps has settled.
PATIENCE, PROGRESS = 10, 2e-3


@dataclass(frozen=True, slots=True)
class BlastFactors:
    """The factors of W_ij = U_i diag(s_ij) V_j^T."""

    row_factor: Float[Tensor, "blocks height rank"]
    mixing: Float[Tensor, "blocks blocks rank"]
    column_factor: Float[Tensor, "blocks rank width"]

    def beyond(self, before: "BlastFactors", stride: float) -> "BlastFactors":
        """A point on the line from an earlier one through this one."""
        return BlastFactors(
            torch.lerp(before.row_factor, self.row_factor, 1 + stride),
            torch.lerp(before.mixing, self.mixing, 1 + stride),
            torch.lerp(before.column_factor, self.column_factor, 1 + stride),
        )

    def balanced(self) -> "BlastFactors":
        """The same matrix with equal norms in U and V for each rank, and a mixing of unit size."""
        row_norms = self.row_factor.norm(dim=(0, 1))
        column_norms = self.column_factor.norm(dim=(0, 2))
        sizes = self.mixing.square().mean((0, 1)).sqrt()
        middle = (row_norms * column_norms * sizes).sqrt()
        alive = middle > 0
        return BlastFactors(
            self.row_factor * torch.where(alive, middle / row_norms, 1),
            self.mixing * torch.where(alive, 1 / sizes, 1),
            self.column_factor * torch.where(alive, middle / column_norms, 1)[:, None],
        )


class Target:
    """A padded matrix and C, cut into bands."""

    def __init__(self, matrix: Tensor, moment: Tensor | None, blocks: int) -> None:
        rows, columns = matrix.shape
        self.blocks = blocks
        matrix = functional.pad(matrix, (0, -columns % blocks, 0, -rows % blocks))
        self.moment: Tensor | None = None
        weighted = matrix
        if moment is not None:
            padded = torch.eye(matrix.shape[1]).to(matrix)
            padded[:columns, :columns] = moment
            weighted = matrix @ padded
            self.moment = rearrange(padded, "(j q) (i p) -> j i q p", j=blocks, i=blocks)
            self.roots = [torch.linalg.cholesky(self.moment[j, j]) for j in range(blocks)]
        self.energy = (weighted * matrix).sum()
        self.bands = rearrange(weighted, "(i p) n -> i p n", i=blocks)
        self.strips = rearrange(weighted, "m (j q) -> j m q", j=blocks)


def nearest(
    weight: Float[Tensor, "rows columns"],
    *,
    blocks: int,
    rank: int,
    second_moment: Float[Tensor, "columns columns"] | None,
    generator: torch.Generator,
) -> BlastFactors:
    """The best BLAST that was found, never worse than low rank at this rank.

    Given C, it is also compared with what is found without it, and never worse.
    """
    # A large matrix of single precision is fitted in it, where C does not ask for more.
    double = second_moment is not None or weight.numel() < LARGE
    matrix = weight.detach().to(torch.float64 if double else weight.dtype)
    size = float(matrix.abs().max()) or 1.0
    matrix = matrix / size
    sides = {"blocks": blocks, "rank": rank}
    sweeps = affordable_sweeps(*matrix.shape, **sides, aware=second_moment is not None)
    moment = None if second_moment is None else regularised(second_moment)
    starts = [low_rank_start(matrix, moment, **sides)]
    if moment is not None:
        starts += [nearest(matrix, **sides, second_moment=None, generator=generator)]
    elif sweeps == MOST:
        starts += [random_start(matrix, generator, **sides) for _ in range(RANDOM_STARTS)]
    found = best_of(Target(matrix, moment, blocks), starts, sweeps)
    return BlastFactors(found.row_factor * size, found.mixing, found.column_factor)


def affordable_sweeps(rows: int, columns: int, *, blocks: int, rank: int, aware: bool) -> int:
    """How many sweeps some seconds allow."""
    systems = blocks * blocks * rank * rank
    work = 2 * rows * columns * rank + systems * (rank // 3 + 20)
    if aware:
        work += 2 * columns * columns * rank + systems * blocks
    return max(FEWEST, min(MOST, int(WORK / work)))


def low_rank_start(
    matrix: Float[Tensor, "rows columns"],
    moment: Float[Tensor, "columns columns"] | None = None,
    *,
    blocks: int,
    rank: int,
) -> BlastFactors:
    """The best low-rank approximation, of the outputs where C is given: a BLAST with s = 1."""
    rows, columns = matrix.shape
    left, right = leading_factors(matrix.double(), rank, moment)
    row_factor = functional.pad(left.to(matrix), (0, 0, 0, -rows % blocks))
    column_factor = functional.pad(right.to(matrix), (0, -columns % blocks))
    return BlastFactors(
        rearrange(row_factor, "(i p) k -> i p k", i=blocks),
        matrix.new_ones(blocks, blocks, rank),
        rearrange(column_factor, "k (j q) -> j k q", j=blocks),
    )


def random_start(
    matrix: Float[Tensor, "rows columns"], generator: torch.Generator, *, blocks: int, rank: int
) -> BlastFactors:
    """Normal numbers throughout."""
    rows, columns = matrix.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(matrix)

    return BlastFactors(
        normal(blocks, -(-rows // blocks), rank),
        normal(blocks, blocks, rank),
        normal(blocks, rank, -(-columns // blocks)),
    )


def best_of(target: Target, starts: Sequence[BlastFactors], sweeps: int) -> BlastFactors:
    """Try every start, go on with the best."""
    trials = [descend(target, start, min(TRIAL, sweeps)) for start in starts]
    best, _ = min(trials, key=lambda trial: trial[1])
    if sweeps > TRIAL:
        best, _ = descend(target, best, sweeps - TRIAL)
    return best


def descend(target: Target, start: BlastFactors, sweeps: int) -> tuple[BlastFactors, float]:
    """The best of at most so many extrapolated sweeps, and its relative squared error."""
    best, lowest = start, float("inf")
    point, before, since = start, None, 0
    errors: list[float] = []
    for _ in range(sweeps):
        now, left = sweep(target, point)
        error = float(left / target.energy)
        if error < lowest:
            best, lowest, since = now, error, since + 1
        else:
            before, since = None, 0
        point = now if before is None else now.beyond(before, (since - 1) / (since + 2))
        before = now
        errors.append(lowest)
        if lowest < 10 * torch.finfo(point.mixing.dtype).eps or settled(errors):
            break
    return best, lowest


def settled(errors: Sequence[float]) -> bool:
    """Whether the last sweeps have hardly lowered the lowest error."""
    return len(errors) > PATIENCE and errors[-1] > (1 - PROGRESS) * errors[-1 - PATIENCE]


def sweep(target: Target, now: BlastFactors) -> tuple[BlastFactors, Tensor]:
    """V, then s, then U; with the squared error of the result."""
    columns = column_step(target, now)
    if target.moment is None:
        grams, own = None, columns @ columns.transpose(1, 2)
    else:
        weighed = torch.einsum("jkq,jiqp->jikp", columns, target.moment)
        grams = torch.einsum("jikp,ilp->jikl", weighed, columns)
        own = torch.stack([grams[j, j] for j in range(target.blocks)])
    reduced = target.strips @ columns.transpose(1, 2)
    reduced = rearrange(reduced, "j (i p) k -> i j p k", i=target.blocks)
    mixing = mixing_step(now, reduced, grams, own)
    right = torch.einsum("ijpk,ijk->ipk", reduced, mixing)
    if grams is None:
        outer = mixed_grams(mixing, own)
    else:
        outer = torch.stack([torch.einsum("jk,jikl,il->kl", one, grams, one) for one in mixing])
    rows = now.row_factor
    rows = rows + solve(outer, (right - rows @ outer).transpose(1, 2)).transpose(1, 2)
    error = target.energy + ((rows @ outer - 2 * right) * rows).sum()
    return BlastFactors(rows, mixing, columns).balanced(), error


def column_step(target: Target, now: BlastFactors) -> Float[Tensor, "blocks rank width"]:
    """V for given U and s: all column bands at once or, where C couples them, one by one."""
    rows, columns, across = now.row_factor, now.column_factor, now.mixing.transpose(0, 1)
    grams = rows.transpose(1, 2) @ rows
    own = mixed_grams(across, grams)
    reduced = rearrange(
        rows.transpose(1, 2) @ target.bands, "i k (j q) -> j i k q", j=target.blocks
    )
    right = (across[..., None] * reduced).sum(1)
    if target.moment is None:
        return columns + solve(own, right - own @ columns)
    columns = columns.clone()
    for j, root in enumerate(target.roots):
        cross = torch.einsum("ikl,ijl->jkl", now.mixing[:, j, :, None] * grams, now.mixing)
        gradient = right[j] - torch.einsum("ikl,ilq->kq", cross, columns @ target.moment[:, j])
        columns[j] += solve(own[j], torch.cholesky_solve(gradient.T, root).T)
    return columns


def mixing_step(
    now: BlastFactors,
    reduced: Float[Tensor, "blocks blocks height rank"],
    grams: Float[Tensor, "blocks blocks rank rank"] | None,
    own: Float[Tensor, "blocks rank rank"],
) -> Float[Tensor, "blocks blocks rank"]:
    """The mixing s for given U and V: a column of blocks at a time."""
    rows, mixing = now.row_factor, now.mixing.clone()
    row_grams = rows.transpose(1, 2) @ rows
    right = torch.einsum("ijpk,ipk->ijk", reduced, rows)
    for j in range(len(own)):
        system = row_grams * own[j]
        if grams is None:
            product = (system @ mixing[:, j, :, None])[..., 0]
        else:
            product = (row_grams * torch.einsum("jkl,ijl->ikl", grams[j], mixing)).sum(-1)
        mixing[:, j] += solve(system, (right[:, j] - product)[..., None])[..., 0]
    return mixing


def mixed_grams(
    mixing: Float[Tensor, "blocks blocks rank"], grams: Float[Tensor, "blocks rank rank"]
) -> Float[Tensor, "blocks rank rank"]:
    """sum_j diag(s_ij) G_j diag(s_ij) for each i."""
    return torch.stack([(one[:, :, None] * grams * one[:, None, :]).sum(0) for one in mixing])


def solve(
    systems: Float[Tensor, "*batch rank rank"], right: Float[Tensor, "*batch rank columns"]
) -> Float[Tensor, "*batch rank columns"]:
    """Positive semidefinite systems, each with as little ridge as makes all of them definite.

    ArithmeticError where none does, as the systems hold numbers that are not finite.
    """
    kind = torch.finfo(systems.dtype)
    share = 10 * kind.eps
    mean = systems.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp(min=kind.tiny)
    while share < systems.shape[-1] / kind.eps:  # a ridge that leaves nothing of the systems
        ridge = torch.diag_embed((share * mean).expand(systems.shape[:-1]))
        lower, failed = torch.linalg.cholesky_ex(systems + ridge)
        if not failed.any():
            return torch.cholesky_solve(right, lower)
        share *= 10
    raise ArithmeticError("the least-squares systems of a BLAST are not finite")
