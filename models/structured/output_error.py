"""The squared error of a layer's output, which a data-aware projection minimises.

C = E[x x^T] is the second moment of the layer's inputs; without one, inputs are taken as white.
"""

import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from models.structured.changes import State, state
from models.structured.checks import INDEFINITE, check_target

# Directions the data never excite are given this share of the mean input energy: enough to make C
# invertible in float64, too little to move the optimum. C summed in float32 may need more.
REGULARISATION = 1e-7


def output_error(
    difference: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> Float[Tensor, ""]:
    """tr(D C D^T) of the difference D between two matrices: the mean squared output error.

    In the more precise of the two dtypes. ValueError for what `project` refuses as weight and C.
    """
    check_target(difference, second_moment, name="difference")
    if second_moment is None:
        return output_energy(difference)
    dtype = torch.promote_types(difference.dtype, second_moment.dtype)
    difference, second_moment = difference.to(dtype), second_moment.to(dtype)
    error = output_energy(difference, second_moment)
    if error < -difference.square().sum() * second_moment.diagonal().mean():
        raise ValueError(INDEFINITE)
    return error


def output_energy(
    matrix: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> Float[Tensor, ""]:
    """tr(W C W^T), the mean squared output, of what a fit has already checked."""
    if second_moment is None:
        return matrix.square().sum()
    return ((matrix @ second_moment) * matrix).sum()


@dataclass(frozen=True, slots=True)
class _Outputs:
    """W C of the matrix that asked last, and its state then."""

    matrix: "weakref.ref[Tensor]"
    state: State
    product: Tensor


@dataclass(slots=True)
class _Known:
    """What was found of a second moment, as long as nobody has changed it."""

    state: State
    share: float
    moment: Tensor
    outputs: _Outputs | None = None


@dataclass(frozen=True, slots=True)
class _Latest:
    """What was found last of a matrix and a second moment, and their states then."""

    subject: Hashable
    matrix: "weakref.ref[Tensor]"
    states: tuple[State, State]
    value: object


class _LatestOfThread(threading.local):
    """By the second moment, but one for all of them: what is kept here may be as large as C.

    Layers are fitted side by side, and would throw away what the others are about to ask for.
    """

    def __init__(self) -> None:
        self.kept = WeakIdKeyDictionary()


T = TypeVar("T")

# Each structure that is tried on a layer asks for the same: a second for 3,072 columns.
_KNOWN = WeakIdKeyDictionary()
_LATEST = _LatestOfThread()


def regularised(
    second_moment: Float[Tensor, "columns columns"], share: float = REGULARISATION
) -> Float[Tensor, "columns columns"]:
    """C in float64, symmetric and made positive definite by a little white noise.

    The answer is kept as long as C is, and must not be changed in place.
    """
    if second_moment.is_inference():  # whose changes cannot be seen
        return _regularised(second_moment, share)
    return _known(second_moment, share).moment


def outputs(
    weight: Float[Tensor, "rows columns"], second_moment: Float[Tensor, "columns columns"]
) -> Float[Tensor, "rows columns"]:
    """W C of the regularised C, in float64; kept until C is asked for another W's.

    The answer must not be changed in place.
    """
    if weight.is_inference() or second_moment.is_inference():
        return weight.detach().double() @ regularised(second_moment)
    known = _known(second_moment, REGULARISATION)
    now = state(weight)
    last = known.outputs  # read once: another thread may ask for another matrix's meanwhile
    if last is None or last.matrix() is not weight or last.state != now:
        last = _Outputs(weakref.ref(weight), now, weight.detach().double() @ known.moment)
        known.outputs = last
    return last.product


def latest(
    subject: Hashable,
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    find: Callable[[], T],
) -> T:
    """What `find` finds of this matrix and C; kept until the thread asks for anything else.

    The answer must not be changed in place.
    """
    if second_moment is None or weight.is_inference() or second_moment.is_inference():
        return find()
    states = state(weight), state(second_moment)
    kept: _Latest | None = _LATEST.kept.get(second_moment)
    if kept and kept.matrix() is weight and (kept.subject, kept.states) == (subject, states):
        return cast("T", kept.value)
    _LATEST.kept.clear()
    value = find()
    _LATEST.kept[second_moment] = _Latest(subject, weakref.ref(weight), states, value)
    return value


def outputs_of_given(
    weight: Float[Tensor, "rows columns"], second_moment: Float[Tensor, "columns columns"]
) -> Float[Tensor, "rows columns"]:
    """W C of C as it is, in float64, from that of the regularised C: no second long product."""
    noise = regularised(second_moment).diagonal() - second_moment.detach().diagonal().double()
    return outputs(weight, second_moment) - weight.detach().double() * noise


def _known(second_moment: Tensor, share: float) -> _Known:
    known: _Known | None = _KNOWN.get(second_moment)
    now = state(second_moment)
    if known is None or (known.state, known.share) != (now, share):
        known = _Known(now, share, _regularised(second_moment, share))
        _KNOWN[second_moment] = known
    return known


def _regularised(second_moment: Tensor, share: float) -> Tensor:
    moment = second_moment.detach().double()
    moment = (moment + moment.T).mul_(0.5)
    diagonal = moment.diagonal()
    mean = diagonal.mean().item()
    if not (moment.sum().isfinite() and mean >= 0):
        raise ValueError(INDEFINITE)
    exact, noise = diagonal.clone(), share * (mean or 1.0)
    diagonal.add_(noise)
    while torch.linalg.cholesky_ex(moment).info != 0:
        noise *= 10
        if noise > 3 * mean:  # far more than what half precision rounds
            raise ValueError(INDEFINITE)
        torch.add(exact, noise, out=diagonal)
    return moment


def best_scale(
    found: Float[Tensor, "rows columns"],
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> float:
    """The number to multiply an approximation by: thereafter it is never worse than zero."""
    found, weight = found.detach().double(), weight.detach().double()
    weighted = found if second_moment is None else found @ second_moment.double()
    energy = float((weighted * found).sum())
    return float((weighted * weight).sum()) / energy if energy > 0 else 1.0
