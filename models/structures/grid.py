"""A matrix cut into a grid of equal cells, the last ones cropped at its borders."""

from collections.abc import Iterator


def cells(
    rows: int, columns: int, height: int, width: int
) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Yield each cell that holds an entry: its place, and (top, tall, left, wide) in entries."""
    for row, top in enumerate(range(0, rows, height)):
        for column, left in enumerate(range(0, columns, width)):
            yield row, column, (top, min(height, rows - top), left, min(width, columns - left))
