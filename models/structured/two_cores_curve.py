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
    the outputs likewise, and of the members up to the cost of dense only: the decomposition of the
    weight, scaled, is measured there.
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
        dense = [one for one in members[1:] if one.mac_count(**sides) > rows * columns]
        del members[len(members) - len(dense) :]
        most = members[-1].sizes(**sides).rho
        errors = _output_errors(weight, second_moment, indices, most)[start - 1 :]
    return ErrorCurve(
        macs=torch.tensor([one.mac_count(**sides) for one in members]),
        parameters=torch.tensor([one.parameter_count(**sides) for one in members]),
        errors=errors.double(),
        structure=members.__getitem__,
    )


def _output_errors(
    weight: Float[Tensor, "rows columns"],
    second_moment: Float[Tensor, "columns columns"],
    indices: CoreIndices,
    most: int,
) -> Float[Tensor, " terms"]:
    """What 1, 2, ... terms of the decomposition leave of the outputs, each scaled at its best.

    Term by term F, by the two contractions of a layer that give F C: terms that take fewer MACs
    than dense take no longer together than W C.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    weight, second_moment = weight.detach().to(exact), second_moment.detach().to(exact)
    outputs = weight @ second_moment
    whole = float((outputs * weight).sum())
    wanted, moment = indices.fold(outputs), indices.fold_moment(second_moment)
    inside = indices.fold(torch.ones_like(weight))
    cores = decompose(indices.fold(weight.double()), rank=most)
    first, second = (core.to(exact) for core in cores)
    found, match, energy, errors = torch.zeros_like(wanted), 0.0, 0.0, []
    for term in range(most):
        left, right = first[:, :, term], second[:, :, :, term]
        matrix = inside * torch.einsum("gpoc,pgdq->poqgcd", left, right)
        middle = torch.einsum("gpoc,gcdijk->pgodijk", left, moment)
        seen = torch.einsum("pgodijk,pgdq->poqijk", middle, right)
        match += float((matrix * wanted).sum())
        energy += float((matrix * (2 * found + seen)).sum())
        found += seen
        # Scaled by match / energy: then it is never worse than zero.
        left_over = whole - match**2 / energy if energy > 0 else whole
        errors.append(max(left_over, 0.0) / whole if whole > 0 else 0.0)
    return torch.tensor(errors, dtype=torch.float64)


def more_terms(
    structure: Einsum | Kronecker, *, rows: int, columns: int
) -> Iterator[Einsum | Kronecker]:
    """All that differ from a structure in nothing but that they have more terms."""
    terms = structure.sizes(rows=rows, columns=columns).rho
    while larger := structure.with_terms(terms := terms + 1, rows=rows, columns=columns):
        yield larger
