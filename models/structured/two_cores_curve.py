"""Cost and error of every number of terms that two cores may have, by one decomposition."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.checks import check_target
from models.structured.error_curve import ErrorCurve, remaining
from models.structured.two_cores_fit import CoreIndices, as_products, decompose
from models.structures import Einsum, Kronecker


def error_curve(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"] | None,
    smallest: Einsum | Kronecker,
) -> ErrorCurve:
    """All members with the terms of `smallest` or more.

    Exact for the weight where nothing is padded, otherwise at least what a projection reaches. For
    the outputs likewise, and of the members up to the cost of dense only the 1st, 2nd, 4th, ...:
    the decomposition of the weight, scaled, is measured there.
    """
    check_target(weight, second_moment)
    rows, columns = weight.shape
    sides = {"rows": rows, "columns": columns}
    start = smallest.sizes(**sides).rho
    members = [smallest, *more_terms(smallest, **sides)]
    indices = CoreIndices.of(smallest.sizes(**sides))
    blocks = indices.fold(weight.detach().double())
    if second_moment is None:
        products = as_products(blocks)
        gram = products @ products.mT
        if products.shape[2] > products.shape[3]:
            gram = products.mT @ products
        energies = torch.linalg.eigvalsh(gram).clamp(min=0).sum(dim=(0, 1))
        errors = remaining(energies.flip(0))[start - 1 :]
    else:
        exact = torch.promote_types(weight.dtype, torch.float32)
        weight, second_moment = weight.detach().to(exact), second_moment.to(exact)
        dense = [one for one in members[1:] if one.mac_count(**sides) > rows * columns]
        del members[len(members) - len(dense) :]
        members = [members[2**power - 1] for power in range(len(members).bit_length())]
        first, second = decompose(blocks, rank=members[-1].sizes(**sides).rho)

        def error(terms: int) -> Tensor:
            kept = torch.einsum("gproc,pgdrq->poqgcd", first[:, :, :terms], second[..., :terms, :])
            found = indices.unfold(kept)[:rows, :columns].to(weight.dtype)
            # Scaled by match / energy: then it is never worse than zero.
            match, energy = (seen * found).sum(), ((found @ second_moment) * found).sum()
            return (whole - match.square() / energy).clamp(min=0) if energy > 0 else whole

        seen = weight @ second_moment
        whole = (seen * weight).sum()
        errors = torch.stack([error(one.sizes(**sides).rho) for one in members])
        errors /= whole if whole > 0 else 1
    return ErrorCurve(
        macs=torch.tensor([one.mac_count(**sides) for one in members]),
        parameters=torch.tensor([one.parameter_count(**sides) for one in members]),
        errors=errors.double(),
        structure=members.__getitem__,
    )


def more_terms(
    structure: Einsum | Kronecker, *, rows: int, columns: int
) -> Iterator[Einsum | Kronecker]:
    """All that differ from a structure in nothing but that they have more terms."""
    terms = structure.sizes(rows=rows, columns=columns).rho
    while larger := structure.with_terms(terms := terms + 1, rows=rows, columns=columns):
        yield larger
