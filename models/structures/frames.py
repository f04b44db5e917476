"""Frames of orthonormal columns, whole or as trains of cores: how many numbers they hold.

Frame: a matrix of `length x rank` with orthonormal columns, `rank <= length`.
Train: a frame made of smaller ones. A row's index has one digit for each core, the fastest first,
    below modes[0], modes[1], ...; core k is a frame of (modes[k] ranks[k]) x ranks[k + 1].
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

# The singular values between two frames: any; at most 1 in magnitude; or all 1, and none stored.
Spectrum = Literal["free", "bounded", "unit"]


def frame_size(*, length: int, rank: int, reduced: bool) -> int:
    """The dimension of the manifold of frames; reduced, of the spaces that they span."""
    return rank * (length - rank) if reduced else rank * length - rank * (rank + 1) // 2


@dataclass(frozen=True, slots=True)
class Train:
    """The sizes of a train of `len(modes)` cores, of which only the first `length` rows are used.

    All cores but the last are reduced: whatever turns their columns, the next core can turn back.
    """

    length: int
    modes: tuple[int, ...]
    ranks: tuple[int, ...]  # one more than modes, from 1 to the frame's rank
    reduced: bool = False  # whether the last core is, too

    @property
    def padded(self) -> int:
        """The rows of the whole frame."""
        return prod(self.modes)

    def core_shape(self, core: int) -> tuple[int, int]:
        """The rows and columns of one core."""
        return self.modes[core] * self.ranks[core], self.ranks[core + 1]

    def is_reduced(self, core: int) -> bool:
        """Whether this core holds a space rather than a frame."""
        return self.reduced or core < len(self.modes) - 1

    def core_size(self, core: int) -> int:
        """The numbers of one core."""
        length, rank = self.core_shape(core)
        return frame_size(length=length, rank=rank, reduced=self.is_reduced(core))

    def parameter_count(self) -> int:
        """The numbers of all cores."""
        return sum(self.core_size(core) for core in range(len(self.modes)))

    def mac_count(self) -> int:
        """Multiply-accumulates of the frame with one vector, by the cheapest grouping."""
        return sum(self._group_macs(first, last) for first, last in pairwise(self.groups()))

    def groups(self) -> tuple[int, ...]:
        """Cut the train where its product with a vector is cheapest; cores between cuts are merged.

        Merging is done once for all vectors, and is not counted: a shortest path over the cuts.
        """
        cheapest: list[tuple[int, tuple[int, ...]]] = [(0, (0,))]
        for last in range(1, len(self.modes) + 1):
            ways = (
                (macs + self._group_macs(first, last), (*cuts, last))
                for first, (macs, cuts) in enumerate(cheapest)
            )
            cheapest.append(min(ways, key=lambda way: way[0]))
        return cheapest[-1][1]

    def _group_macs(self, first: int, last: int) -> int:
        if (first, last) == (0, len(self.modes)):  # the frame itself, whose padding is cropped
            return self.length * self.ranks[-1]
        return self.padded // prod(self.modes[:first]) * self.ranks[first] * self.ranks[last]
