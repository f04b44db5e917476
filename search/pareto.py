"""Which networks no other beats, and how much they cover: arithmetic over points to be small in.

A front is judged by its hypervolume: the volume between its points and a reference point, which
must be worse than they are in everything; what is not counts nothing. (Zitzler & Thiele, 1998.)
"""

from collections.abc import Sequence

Point = tuple[float, ...]
MARGIN = 1.1  # the reference point is this many times the worst value that was found


def front(points: Sequence[Point]) -> tuple[int, ...]:
    """Return the indices of the points that no other is at least as good as in everything."""
    # In this order whatever beats a point stands before it, and so does one on the front that does.
    leading: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not any(beats(points[other], points[index]) for other in leading):
            leading.append(index)
    return tuple(sorted(leading))


def beats(one: Point, other: Point) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def reference_point(points: Sequence[Point]) -> Point:
    """Return a point a little worse than the worst of all, in each coordinate."""
    return tuple(MARGIN * max(values) for values in zip(*points, strict=True))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Measure exactly what two or more coordinates' points cover, in slices along the last."""
    inside = [p for p in points if all(a < b for a, b in zip(p, reference, strict=True))]
    inside = [inside[index] for index in front(inside)]
    if len(reference) == 2:
        return _area(inside, reference)
    levels = sorted({point[-1] for point in inside})
    return sum(
        (above - level) * hypervolume([p[:-1] for p in inside if p[-1] <= level], reference[:-1])
        for level, above in zip(levels, (*levels[1:], reference[-1]), strict=False)
    )


def _area(inside: Sequence[Point], reference: Point) -> float:
    area, height = 0.0, reference[1]
    for x, y in sorted(inside):
        if y < height:
            area += (reference[0] - x) * (height - y)
            height = y
    return area
