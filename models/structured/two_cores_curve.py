"""Cost and error of every number of terms that two cores may have, by one decomposition."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from models.structured.checks import check_target
from models.structured.error_curve import ErrorCurve, remaining
from models.structured.output_error import outputs_of_given
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
        member=members.__getitem__,
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
    seen = outputs_of_given(weight, second_moment).to(exact)
    weight, second_moment = weight.detach().to(exact), second_moment.detach().to(exact)
    whole = float((seen * weight).sum())
    moment, inside = indices.fold_moment(second_moment), indices.fold(torch.ones_like(weight))
    padded = inside.shape.numel() > weight.numel()
    peak = weight.abs().max().clamp(min=torch.finfo(exact).tiny)  # squares of it may underflow
    first, second = decompose(indices.fold(weight / peak), rank=most)
    first = first * peak
    wanted = as_products(indices.fold(seen))
    by_first = first.permute(1, 0, 2, 3, 4).flatten(3) @ wanted
    by_second = second.permute(0, 1, 3, 4, 2).flatten(3)
    matches = (by_first * by_second).sum((0, 1, 3), dtype=torch.float64).cumsum(0).tolist()
    found, energy, errors = torch.zeros_like(inside), 0.0, []
    for term, match in enumerate(matches):
        left, right = first[:, :, term], second[:, :, :, term]
        matrix = torch.einsum("gpoc,pgdq->poqgcd", left, right)
        if padded:
            matrix = matrix * inside
        added = _outputs_of_term(left, right, moment).view_as(found)
        energy += float((matrix * torch.add(added, found, alpha=2)).sum())
        found += added
        # Scaled by match / energy: then it is never worse than zero.
        left_over = whole - match**2 / energy if energy > 0 else whole
        errors.append(max(left_over, 0.0) / whole if whole > 0 else 0.0)
    return torch.tensor(errors, dtype=torch.float64)


def _outputs_of_term(
    left: Float[Tensor, "g p o c"],
    right: Float[Tensor, "p g d q"],
    moment: Float[Tensor, "g c d g c d"],
) -> Float[Tensor, "p o q columns"]:
    """F C; what lies between its contractions is written as the second takes it."""
    (g, p, o, c), (d, q) = left.shape, right.shape[2:]
    middle = moment.new_empty(p * o, g, moment[0, 0].numel())
    torch.bmm(left.reshape(g, p * o, c), moment.reshape(g, c, -1), out=middle.transpose(0, 1))
    last = right.permute(0, 3, 1, 2).reshape(p, 1, q, g * d)
    found: Tensor = last @ middle.view(p, o, g * d, -1)
    return found


def more_terms(
    structure: Einsum | Kronecker, *, rows: int, columns: int
) -> Iterator[Einsum | Kronecker]:
    """All that differ from a structure in nothing but that they have more terms."""
    terms = structure.sizes(rows=rows, columns=columns).rho
    while larger := structure.with_terms(terms := terms + 1, rows=rows, columns=columns):
        yield larger
