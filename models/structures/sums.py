"""A sum of structures: W = W_1 + ... + W_k, each part of a structure of its own."""

from collections.abc import Iterator
from typing import Annotated, Literal, final

from pydantic import Field

from models.structures.base import Patch, StructureSpec
from models.structures.plain import PlainStructure

Part = Annotated[PlainStructure, Field(discriminator="kind")]


@final
class Sum(StructureSpec):
    """A sum of two or more structures: low rank plus block diagonal, low rank plus tiles."""

    kind: Literal["sum"] = "sum"
    parts: tuple[Part, ...] = Field(min_length=2)

    def check_fits(self, *, rows: int, columns: int) -> None:
        """Admit what every part admits."""
        for part in self.parts:
            part.check_fits(rows=rows, columns=columns)

    def parameter_count(self, *, rows: int, columns: int) -> int:
        """All parts."""
        return sum(part.parameter_count(rows=rows, columns=columns) for part in self.parts)

    def mac_count(self, *, rows: int, columns: int) -> int:
        """All parts."""
        return sum(part.mac_count(rows=rows, columns=columns) for part in self.parts)

    def larger(self, *, rows: int, columns: int) -> Iterator["Sum"]:
        """Yield the next sizes up of one part at a time."""
        for index, part in enumerate(self.parts):
            for grown in part.larger(rows=rows, columns=columns):
                yield Sum(parts=(*self.parts[:index], grown, *self.parts[index + 1 :]))

    def in_words(self) -> str:
        """`low rank, 4 + 8 diagonal blocks`."""
        return " + ".join(part.in_words() for part in self.parts)

    def patches(self, *, rows: int, columns: int) -> Iterator[Patch]:
        """Yield the parts' pictures, one over the other."""
        for part in self.parts:
            yield from part.patches(rows=rows, columns=columns)
