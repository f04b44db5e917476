"""Which kinds of structures are measured, and the member of each within a number of MACs."""

from torch import Tensor

from models.structured.curves import error_curve
from models.structures import Structure
from models.structures.sizes import CLOSED_KINDS, GRID_KINDS, KINDS, Kind, largest_within

# Some take as many MACs as dense or more, others are for smaller matrices than are measured.
LEFT_OUT: set[Kind] = {
    "CP",
    "low displacement rank",
    "block sparse, tiles of 8",
    "block sparse, tiles of 16",
    "GBLR, rank 8",
    "low rank + tiles of 16",
}
NAMES: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in LEFT_OUT)
CURVES: tuple[Kind, ...] = tuple(kind for kind in NAMES if kind in CLOSED_KINDS)


def chosen(name: Kind, weight: Tensor, macs: int) -> Structure | None:
    """The member within the MACs that suits the matrix best, if there is any."""
    rows, columns = weight.shape
    if macs < 1:
        return None
    if name in GRID_KINDS:
        return largest_within(name, rows=rows, columns=columns, budget=macs)
    curve = error_curve(name, weight, shares=(macs / weight.numel(),))
    return curve.best_within(macs) if (curve.macs <= macs).any() else None
