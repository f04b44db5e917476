"""The members of a plain family that layers may be made of, and which of them loses least."""

from collections.abc import Mapping, Sequence
from typing import Literal

from models.cost import dense_cost, layer_cost
from models.spec import LayerSpec
from models.structured.base import StructuredLinear
from models.structured.build import project
from models.structured.output_error import output_energy
from models.structures import Structure
from models.structures.sizes import Kind, largest_within
from search.profile import LayerProfile
from search.resolved import ResolvedSearch
from search.rules import smallest_member
from search.spec import BudgetUnreachable

Family = Literal["block_diagonal", "monarch", "btt", "blast", "tensor_train"]
KINDS: Mapping[Family, tuple[Kind, ...]] = {
    "block_diagonal": ("block diagonal",),
    "monarch": ("Monarch, rank 1",),
    "btt": ("BTT, 4 x 4", "BTT, 8 x 8"),
    "blast": ("BLAST, 4 x 4",),
    "tensor_train": ("tensor train",),
}


def even_members(
    family: Family, layers: Sequence[LayerSpec], resolved: ResolvedSearch
) -> Mapping[str, Sequence[Structure]]:
    """Return the family's members within the same share of every layer's dense cost.

    Where a layer is too small for that, it gets the family's smallest member, and the others pay
    for it. A share of the MACs is one of the parameters, too: no member has more of them than MACs.
    BudgetUnreachable where even the smallest members take more than the budget.
    """
    words = family.replace("_", " ")
    smallest: dict[str, Structure] = {}
    while True:
        spent = sum(
            layer_cost(layer.model_copy(update={"structure": member}), resolved.counted)
            for layer in layers
            if (member := smallest.get(layer.name))
        )
        rest = [layer for layer in layers if layer.name not in smallest]
        left = resolved.budget - spent
        if left < 0 or (rest and not left):
            sentence = f"the smallest {words} layers in place of {', '.join(smallest)} cost"
            raise BudgetUnreachable("budget", f"{sentence} {spent:,}; {resolved.budget:,} is given")
        share = left / max(1, sum(dense_cost(layer, resolved.counted) for layer in rest))
        found = {layer.name: _within(family, layer, share) for layer in rest}
        too_small = [layer for layer in rest if not found[layer.name]]
        if not too_small:
            return found | {name: [member] for name, member in smallest.items()}
        smallest |= {layer.name: _smallest(family, layer) for layer in too_small}


def _within(family: Family, layer: LayerSpec, share: float) -> list[Structure]:
    sides = {"rows": layer.rows, "columns": layer.columns}
    # A number that the share means exactly may come out a little below itself.
    allowed = int(share * layer.rows * layer.columns + 1e-6)
    sizes = [largest_within(kind, **sides, budget=allowed) for kind in KINDS[family]]
    return [size for size in sizes if size is not None]


def _smallest(family: Family, layer: LayerSpec) -> Structure:
    sides = {"rows": layer.rows, "columns": layer.columns}
    sizes = [smallest_member(kind, **sides) for kind in KINDS[family]]
    found = [size for size in sizes if size is not None]
    if not found:
        sentence = f"no {family.replace('_', ' ')} layer in place of {layer.name} saves anything"
        raise BudgetUnreachable("budget", sentence)
    return min(found, key=lambda size: size.mac_count(**sides))


def best_of(p: LayerProfile, sizes: Sequence[Structure]) -> StructuredLinear:
    """Return the projection of a layer, by its outputs, onto the best of some structures."""
    found = [project(p.weight, size, bias=p.bias, second_moment=p.second_moment) for size in sizes]
    return min(found, key=lambda layer: _error(layer, p))


def _error(layer: StructuredLinear, p: LayerProfile) -> float:
    rest = (layer.to_dense().detach() - p.weight).double()
    return float(output_energy(rest, p.second_moment.double()))
