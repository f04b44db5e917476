"""Structures and times in a few words, the same for terminals and for pages."""

from typing import assert_never

from models.spec import BlockDiagonal, Dense, Gblr, LowRank, Structure


def in_words(structure: Structure) -> str:
    """`rank 4`, `8 diagonal blocks`, `5 rectangles, rank 12, 2 tiles` with the ranks' sum."""
    match structure:
        case Dense():
            return "dense"
        case LowRank(rank=rank):
            return f"rank {rank}"
        case BlockDiagonal(blocks=blocks):
            return f"{blocks} diagonal blocks"
        case Gblr(rectangles=rectangles):
            tiles = sum(rectangle.is_tile for rectangle in rectangles)
            ranks = sum(rectangle.rank for rectangle in rectangles if not rectangle.is_tile)
            parts = [
                f"{_counted(len(rectangles) - tiles, 'rectangle')}, rank {ranks}",
                _counted(tiles, "tile"),
            ]
            return ", ".join(part for part in parts if not part.startswith("0")) or "nothing"
        case _:
            assert_never(structure)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
