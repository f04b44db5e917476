"""STTP: W = U diag(s) V^T, U and V tensor trains of cores made of Householder reflections."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.descent import descend
from models.structured.spectral import SpectralLinear
from models.structures import Sttp

STEPS = 60  # of a fit to the outputs


@final
class SttpLinear(SpectralLinear[Sttp]):
    """The spectral tensor train (Obukhov et al., AISTATS 2021, arXiv 2103.04217)."""

    def fit_matrix(
        self,
        weight: Float[Tensor, "rows columns"],
        second_moment: Float[Tensor, "columns columns"] | None,
        generator: torch.Generator,
    ) -> None:
        """Quasi-optimal and exact for a member; given C, descent from the better of two starts.

        They are the nearest train, and the train nearest to the low-rank matrix of best output.
        """
        matrix = weight.double()
        start = self.projected(matrix)
        if second_moment is None:
            self.set_parts(start)
            return
        moment = second_moment.double()
        left, spectrum, right = self.output_optimal(matrix, moment)
        other = self.projected((left * spectrum) @ right.T)
        self.best_start(matrix, moment, [start, other])
        descend(self, weight, second_moment, steps=STEPS)
