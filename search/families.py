"""For one layer, the member of a plain family that loses least within a share of its cost."""

from collections.abc import Mapping, Sequence
from typing import Literal

from models.structured.base import StructuredLinear
from models.structured.build import project
from models.structured.output_error import output_error
from models.structures import Structure
from models.structures.sizes import Kind, largest_within
from search.profile import LayerProfile
from search.spec import BudgetUnreachable

Family = Literal["block_diagonal", "monarch", "btt", "blast", "tensor_train"]
KINDS: Mapping[Family, tuple[Kind, ...]] = {
    "block_diagonal": ("block diagonal",),
    "monarch": ("Monarch, rank 1",),
    "btt": ("BTT, 4 x 4", "BTT, 8 x 8"),
    "blast": ("BLAST, 4 x 4",),
    "tensor_train": ("tensor train",),
}


def best_member(family: Family, p: LayerProfile, share: float) -> StructuredLinear:
    """Return the projection of a layer, by its outputs, onto the family's best member.

    A share of the MACs is one of the parameters, too: no member has more of them than MACs.
    BudgetUnreachable where even the smallest takes more than the share.
    """
    rows, columns = p.layer.rows, p.layer.columns
    # A number that the share means exactly may come out a little below itself.
    allowed = int(share * rows * columns + 1e-6)
    sizes = [
        largest_within(kind, rows=rows, columns=columns, budget=allowed) for kind in KINDS[family]
    ]
    found = [size for size in sizes if size is not None]
    if not found:
        words = family.replace("_", " ")
        raise BudgetUnreachable(
            "budget", f"no {words} layer in place of {p.layer.name} is within {allowed:,} MACs"
        )
    return best_of(p, found)


def best_of(p: LayerProfile, sizes: Sequence[Structure]) -> StructuredLinear:
    """Return the projection of a layer, by its outputs, onto the best of some structures."""
    found = [project(p.weight, size, bias=p.bias, second_moment=p.second_moment) for size in sizes]
    return min(found, key=lambda layer: _error(layer, p))


def _error(layer: StructuredLinear, p: LayerProfile) -> float:
    rest = (layer.to_dense().detach() - p.weight).double()
    return float(output_error(rest, p.second_moment.double()))
