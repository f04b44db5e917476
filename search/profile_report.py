"""What a search knows of its layers before anything is learned, for readers of its profile."""

from pydantic import NonNegativeInt

from models.cost import Quantity
from models.frozen import Spec
from models.structures import Structure
from search.rules import MenuKind, Rule


class MenuCurve(Spec):
    """Sizes of one kind in one layer, from the cheapest up, each number of a size at its place.

    MACs are for one sample; latencies, where the budget is in time, in millionths of what all
    searched layers take dense. Errors are relative and squared, of the layer's outputs; harms are
    how far the network's answers are expected to move, comparable across layers and kinds.
    """

    kind: MenuKind
    structures: tuple[str, ...]
    macs: tuple[NonNegativeInt, ...]
    parameters: tuple[NonNegativeInt, ...]
    latencies: tuple[NonNegativeInt, ...] = ()
    errors: tuple[float, ...]
    harms: tuple[float, ...]


class ProfiledLayer(Spec):
    """One layer: how much its outputs matter, what binds it, what it could be made of.

    `sensitivity` is the rise of the loss for one unit of relative output error. Long curves are
    thinned; the sizes that an allocation chose are always there.
    """

    name: str
    rows: int
    columns: int
    tokens: int
    sensitivity: float
    rule: Rule | None
    menu: tuple[MenuCurve, ...]


class AllocatedLayer(Spec):
    """What an allocation gives a layer; `share` is the cost over the layer's dense cost."""

    layer: str
    kind: MenuKind
    structure: Structure
    cost: int
    share: float
    error: float
    harm: float


class AllocationReport(Spec):
    """The choice over the whole menu under one budget: no other harms less than `bound`."""

    budget: int
    cost: int
    harm: float
    bound: float
    layers: tuple[AllocatedLayer, ...]


class LeftDense(Spec):
    """A searched layer that cannot be exchanged, and why."""

    layer: str
    reason: str


class TimesReport(Spec):
    """What a budget in time is counted in: seconds that a batch takes, as the search measured them.

    `dense_seconds` are of the searched layers, in the network's order; `smallest_cost` is what they
    take at least, in millionths of that.
    """

    batch: int
    network_seconds: float
    dense_seconds: tuple[float, ...]
    smallest_cost: int


class ProfileReport(Spec):
    """The profile of a search: its layers, and the best of their menus under each budget.

    `times` is of a search whose budget is in time.
    """

    quantity: Quantity
    dense_cost: int
    layers: tuple[ProfiledLayer, ...]
    allocations: tuple[AllocationReport, ...]
    left_dense: tuple[LeftDense, ...]
    times: TimesReport | None = None
