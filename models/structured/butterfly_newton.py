"""Butterflies fitted to a matrix by damped Gauss-Newton steps on all their factors at once.

Notation: one number x of a factor, from node i to node o, adds x l r to the matrix, with l what the
later factors make of o and r what the earlier ones make of the input for i. Inner products of two
such derivatives are (l^H l') (r'^* r): the normal equations need no derivative itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

DAMPING = 1e-2  # at the start, of the mean of the normal equations' diagonal
LEAST_DAMPING, MOST_DAMPING = 1e-14, 1e8
EXACT = 1e-13  # a relative squared error to stop at: single precision leaves less than that


@dataclass(frozen=True, slots=True)
class Target:
    """A square matrix of which only some rows and columns count."""

    matrix: Float[Tensor, "side side"]
    rows: Bool[Tensor, " side"]
    columns: Bool[Tensor, " side"]


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
    mixes: Num[Tensor, "factors pairs 2 2"], order: Sequence[int], target: Target, *, steps: int
) -> Num[Tensor, "factors pairs 2 2"]:
    """Take at most `steps` steps of Levenberg and Marquardt, each of which lowers the error.

    Of complex numbers, the real part of the product is what should be the target.
    """
    places = [nodes(len(target.matrix), stride) for stride in order]
    wanted = target.matrix * target.rows[:, None] * target.columns
    energy = float(wanted.square().sum())
    if energy == 0.0:
        return mixes
    error, damping = _error(mixes, places, target), DAMPING
    for _ in range(steps):
        if error <= EXACT * energy:
            break
        normal, slope = _normal_equations(mixes, places, target)
        unit = normal.diagonal().mean()
        while damping < MOST_DAMPING:
            damped = normal.clone()
            damped.diagonal().add_(damping * unit)
            lower, info = torch.linalg.cholesky_ex(damped)
            if info == 0:
                step = -torch.cholesky_solve(slope[:, None], lower)[:, 0]
                tried = mixes + _as_mixes(step, mixes)
                found = _error(tried, places, target)
                if found < error:
                    break
            damping *= 4
        else:
            break
        promised = float(-2 * slope @ step - step @ (normal @ step))
        kept = (error - found) / max(promised, 1e-300)
        if kept > 0.75:
            damping = max(damping / 5, LEAST_DAMPING)
        elif kept < 0.25:
            damping *= 2
        mixes, error = tried, found
    return mixes


def _as_mixes(step: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        step = torch.complex(*step.chunk(2))
    return step.reshape(like.shape)


def _difference(product: Tensor, target: Target) -> Tensor:
    real = product.real if product.is_complex() else product
    return (real - target.matrix * target.columns) * target.rows[:, None]


def _error(mixes: Tensor, places: Sequence[Tensor], target: Target) -> float:
    product = torch.diag(target.columns.to(mixes.dtype))
    for mix, place in zip(mixes, places, strict=True):
        product = _sparse(mix, place) @ product
    return float(_difference(product, target).square().sum())


def _sparse(mix: Tensor, place: Tensor) -> Tensor:
    factor = mix.new_zeros(2 * len(mix), 2 * len(mix))
    factor[place[:, :, None], place[:, None, :]] = mix
    return factor


def _normal_equations(
    mixes: Tensor, places: Sequence[Tensor], target: Target
) -> tuple[Float[Tensor, "numbers numbers"], Float[Tensor, " numbers"]]:
    factors = [_sparse(mix, place) for mix, place in zip(mixes, places, strict=True)]
    before = [torch.diag(target.columns.to(mixes.dtype))]
    for factor in factors:
        before.append(factor @ before[-1])
    after = [torch.diag(target.rows.to(mixes.dtype))]
    for factor in reversed(factors[1:]):
        after.append(after[-1] @ factor)
    after.reverse()
    left = torch.cat(
        [found[:, _each(place, 2)] for found, place in zip(after, places, strict=True)], 1
    )
    right = torch.cat(
        [found[_each(place, 1)] for found, place in zip(before, places, strict=False)]
    )
    difference = _difference(before[-1], target).to(mixes.dtype)
    slope = ((left.T @ difference) * right).sum(1)
    if not mixes.is_complex():
        return (left.T @ left) * (right @ right.T), slope
    # Of the real parts: Re a Re b = Re(a^* b + a b) / 2, and i times a number for its other part.
    turned = (left.mH @ left) * (right @ right.mH).T
    plain = (left.T @ left) * (right @ right.T)
    real, imaginary = (turned + plain) / 2, (turned - plain) / 2
    upper = torch.cat([real.real, -real.imag], 1)
    lower = torch.cat([-real.imag.T, imaginary.real], 1)
    return torch.cat([upper, lower]), torch.cat([slope.real, -slope.imag])


def _each(place: Tensor, end: int) -> Tensor:
    """For every number of a factor, the node it goes to (2) or comes from (1)."""
    ends = place[:, :, None] if end == 2 else place[:, None, :]
    return ends.expand(-1, 2, 2).reshape(-1)
