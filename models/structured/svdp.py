"""SVDP: W = U diag(s) V^T, U and V made of Householder reflections."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured import low_rank
from models.structured.descent import descend
from models.structured.error_curve import ErrorCurve
from models.structured.spectral import SpectralLinear
from models.structures import Svdp

STEPS = 100  # of a fit to the outputs of a spectrum that is not free


@final
class SvdpLinear(SpectralLinear[Svdp]):
    """A low-rank layer without redundant numbers, whose singular values are at hand."""

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Exact, but where C is given and the spectrum is not free: there, by descent."""
        matrix = weight.double()
        if second_moment is None:
            self.set_parts(self.projected(matrix))
        elif self.spec.spectrum == "free":
            self.set_parts(self.output_optimal(matrix, second_moment))
        else:
            moment = second_moment.double()
            starts = [self.projected(matrix), self.output_optimal(matrix, moment)]
            self.best_start(matrix, moment, starts)
            descend(self, weight, second_moment, steps=STEPS)


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None = None,
) -> ErrorCurve:
    """Every rank of free spectrum at once: the errors of low rank, with fewer numbers."""
    curve = low_rank.error_curve(weight, second_moment)
    ranks = torch.arange(1, len(curve.errors) + 1)
    return ErrorCurve(
        macs=curve.macs,
        parameters=curve.parameters - ranks.square(),
        errors=curve.errors,
        member=lambda index: Svdp(rank=index + 1),
    )
