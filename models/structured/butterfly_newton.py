"""Butterflies fitted to a matrix by damped Gauss-Newton steps on all their factors at once.

Notation: one number x of a factor, from node i to node o, adds x l r to the matrix, with l what the
later factors make of o and r what the earlier ones make of the input for i. Inner products of two
such derivatives are (l^H l') (r'^* r): the normal equations need no derivative itself. Where
numbers are more than entries, (J^T J + d)^-1 J^T = J^T (J J^T + d)^-1 is a smaller system.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

DAMPING = 1e-2  # at the start, of the mean of the normal equations' diagonal
LEAST_DAMPING, MOST_DAMPING = 1e-14, 1e8
# Of what a step promised, the shares kept above which the next is damped less, below which more.
WELL_KEPT, ILL_KEPT = 0.75, 0.25
LESS, MORE, MUCH_MORE = 0.2, 2.0, 4.0  # times the damping; the last after a step that was no use
EXACT = 1e-13  # a relative squared error to stop at: single precision leaves less than that
PATIENCE = 6  # steps, taken or not, over which an error's progress is asked for
MOST_AT_ONCE = 1 << 22  # entries of the equations of all copies that are solved together


@dataclass(frozen=True, slots=True)
class Target:
    """Square matrices of which only some rows and columns count."""

    matrices: Float[Tensor, "copies side side"]
    rows: Bool[Tensor, "copies side"]
    columns: Bool[Tensor, "copies side"]

    def of(self, copies: Tensor) -> "Target":
        """Some of them."""
        return Target(self.matrices[copies], self.rows[copies], self.columns[copies])


def strides(levels: int, blocks: int, *, increasing: bool) -> Iterator[int]:
    """The stride of every factor, in order of use."""
    for block in range(blocks):
        upwards = increasing == (block % 2 == 0)
        yield from (1 << bit for bit in (range(levels) if upwards else reversed(range(levels))))


def nodes(side: int, stride: int) -> Tensor:
    """The two entries that each pair of a factor mixes."""
    pair = torch.arange(side // 2)
    one = pair // stride * 2 * stride + pair % stride
    return torch.stack([one, one + stride], -1)


def refined(
    mixes: Num[Tensor, "copies factors pairs 2 2"],
    order: Sequence[int],
    target: Target,
    *,
    steps: int,
    progress: float = 1.0,
) -> Num[Tensor, "copies factors pairs 2 2"]:
    """Take at most `steps` steps of Levenberg and Marquardt, each of which lowers the error.

    Of complex numbers, the real part of the product is what should be the target. Copies are of
    no concern to one another; each stops where it is exact, or where the last few steps left more
    than that share, `progress`, of its error.
    """
    places = [nodes(target.matrices.shape[-1], stride) for stride in order]
    numbers = mixes[0].numel() * (2 if mixes.is_complex() else 1)
    entries = target.matrices[0].numel()
    at_once = max(1, MOST_AT_ONCE // (max(numbers, entries) * min(numbers, entries)))
    found = [
        _refined_together(mixes[some], places, target.of(some), steps, progress)
        for some in torch.arange(len(mixes)).split(at_once)
    ]
    return torch.cat(found)


def _refined_together(
    mixes: Num[Tensor, "copies factors pairs 2 2"],
    places: Sequence[Tensor],
    target: Target,
    steps: int,
    progress: float,
) -> Num[Tensor, "copies factors pairs 2 2"]:
    wanted = target.matrices * target.rows[:, :, None] * target.columns[:, None]
    exact = EXACT * wanted.square().sum((1, 2))
    error = _error(mixes, places, target)
    damping, taken = torch.full_like(error, DAMPING), torch.zeros_like(error)
    errors = [error]
    while True:  # every step not taken raises the damping, which ends at the most
        is_left = (error > exact) & (damping < MOST_DAMPING) & (taken < steps)
        if len(errors) > PATIENCE:
            is_left &= error <= progress * errors[-1 - PATIENCE]
        left = is_left.nonzero()[:, 0]
        if not len(left):
            break
        here, before, some = mixes[left], error[left], target.of(left)
        step, promised = _step(here, places, some, damping[left])
        tried = here + _as_mixes(step, here)
        after = _error(tried, places, some)
        is_lower = after < before  # nor is it where the equations had no solution
        damping = damping.index_copy(
            0, left, damping[left] * _change(is_lower, (before - after) / promised)
        ).clamp_min(LEAST_DAMPING)
        mixes = mixes.index_copy(
            0, left, torch.where(is_lower[:, None, None, None, None], tried, here)
        )
        taken = taken.index_add(0, left, is_lower.to(taken))
        error = error.index_copy(0, left, torch.where(is_lower, after, before))
        errors.append(error)
    return mixes


def _change(
    is_lower: Bool[Tensor, " copies"], kept: Float[Tensor, " copies"]
) -> Float[Tensor, " copies"]:
    """What to multiply the damping by."""
    change = torch.ones_like(kept)
    change[kept > WELL_KEPT] = LESS
    change[kept < ILL_KEPT] = MORE
    change[~is_lower] = MUCH_MORE
    return change


def _as_mixes(step: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        step = torch.complex(*step.chunk(2, -1))
    return step.reshape(like.shape)


def _difference(product: Tensor, target: Target) -> Tensor:
    real = product.real if product.is_complex() else product
    return (real - target.matrices * target.columns[:, None]) * target.rows[:, :, None]


def _error(mixes: Tensor, places: Sequence[Tensor], target: Target) -> Float[Tensor, " copies"]:
    product = torch.diag_embed(target.columns.to(mixes.dtype))
    for mix, place in zip(mixes.unbind(1), places, strict=True):
        product = _sparse(mix, place) @ product
    return _difference(product, target).square().sum((1, 2))


def _sparse(mix: Tensor, place: Tensor) -> Tensor:
    factor = mix.new_zeros(len(mix), 2 * len(place), 2 * len(place))
    factor[:, place[:, :, None], place[:, None, :]] = mix
    return factor


def _step(
    mixes: Tensor, places: Sequence[Tensor], target: Target, damping: Float[Tensor, " copies"]
) -> tuple[Float[Tensor, "copies numbers"], Float[Tensor, " copies"]]:
    """The damped step, and by how much the errors would fall if all were linear."""
    left, right, difference = _derivatives(mixes, places, target)
    slope = _against(left, right, difference)
    if slope.shape[1] > difference[0].numel():
        direct = (left[:, :, None] * right.mT[:, None]).flatten(1, 2)
        if direct.is_complex():
            direct = torch.view_as_real(direct).flatten(2)
        equations = direct @ direct.mT
        unit = damping * equations.diagonal(dim1=1, dim2=2).sum(1) / slope.shape[1]
        rest = _solved(equations, unit, difference.flatten(1)).reshape(difference.shape)
        step = -_against(left, right, rest)
    else:
        equations = _normal_equations(left, right)
        unit = damping * equations.diagonal(dim1=1, dim2=2).mean(1)
        step = -_solved(equations, unit, slope)
    return step, unit * step.square().sum(1) - (slope * step).sum(1)


def _against(
    left: Tensor, right: Tensor, matrices: Float[Tensor, "copies side side"]
) -> Float[Tensor, "copies numbers"]:
    """The inner products of matrices and all derivatives."""
    found = ((left.mT @ matrices.to(left.dtype)) * right).sum(2)
    return torch.cat([found.real, -found.imag], 1) if found.is_complex() else found


def _solved(equations: Tensor, damping: Tensor, right: Tensor) -> Tensor:
    """Not a number, or nonsense, where rounding left the damped equations indefinite."""
    equations.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    lower, _ = torch.linalg.cholesky_ex(equations)
    found: Tensor = torch.cholesky_solve(right[..., None], lower)
    return found[..., 0]


def _derivatives(
    mixes: Tensor, places: Sequence[Tensor], target: Target
) -> tuple[Tensor, Tensor, Float[Tensor, "copies side side"]]:
    """Each l (copies, side, numbers), each r (copies, numbers, side), and the difference."""
    factors = [_sparse(mix, place) for mix, place in zip(mixes.unbind(1), places, strict=True)]
    before = [torch.diag_embed(target.columns.to(mixes.dtype))]
    for factor in factors:
        before.append(factor @ before[-1])
    after = [torch.diag_embed(target.rows.to(mixes.dtype))]
    for factor in reversed(factors[1:]):
        after.append(after[-1] @ factor)
    after.reverse()
    left = torch.cat(
        [found[:, :, _each(place, 2)] for found, place in zip(after, places, strict=True)], 2
    )
    right = torch.cat(
        [found[:, _each(place, 1)] for found, place in zip(before, places, strict=False)], 1
    )
    return left, right, _difference(before[-1], target)


def _normal_equations(left: Tensor, right: Tensor) -> Float[Tensor, "copies numbers numbers"]:
    plain = (left.mT @ left) * (right @ right.mT)
    if not left.is_complex():
        return plain
    # Of the real parts: Re a Re b = Re(a^* b + a b) / 2, and i times a number for its other part.
    turned = (left.mH @ left) * (right @ right.mH).mT
    real, imaginary = (turned + plain) / 2, (turned - plain) / 2
    upper = torch.cat([real.real, -real.imag], 2)
    lower = torch.cat([-real.imag.mT, imaginary.real], 2)
    return torch.cat([upper, lower], 1)


def _each(place: Tensor, end: int) -> Tensor:
    """For every number of a factor, the node it goes to (2) or comes from (1)."""
    ends = place[:, :, None] if end == 2 else place[:, None, :]
    return ends.expand(-1, 2, 2).reshape(-1)
