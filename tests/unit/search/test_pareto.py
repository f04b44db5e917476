"""Fronts and what they cover, by hand and beside Optuna's own hypervolume."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.pareto import Point, beats, front, hypervolume, reference_point

optuna_hypervolume: Any = pytest.importorskip("optuna._hypervolume")

coordinates = st.floats(0, 10, allow_subnormal=False)


def clouds(dimensions: int) -> st.SearchStrategy[list[Point]]:
    return st.lists(st.tuples(*[coordinates] * dimensions), min_size=1, max_size=8)


def test_two_points_cover_what_their_rectangles_do_together() -> None:
    assert hypervolume([(1, 2), (2, 1)], (3, 3)) == 2 + 2 - 1
    assert hypervolume([(1, 1, 1)], (2, 3, 4)) == 1 * 2 * 3


def test_what_is_beyond_the_reference_point_covers_nothing() -> None:
    assert hypervolume([(1, 4)], (3, 3)) == 0
    assert hypervolume([(1, 3)], (3, 3)) == 0
    assert hypervolume([], (3, 3)) == 0


@given(st.one_of(clouds(2), clouds(3)))
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    expected = [i for i, p in enumerate(points) if not any(beats(q, p) for q in points)]
    assert list(front(points)) == expected


@given(st.one_of(clouds(2), clouds(3), clouds(4)))
def test_the_hypervolume_is_optunas(points: list[Point]) -> None:
    reference = tuple(5.0 for _ in points[0])
    inside = [p for p in points if all(value <= 5 for value in p)]
    values = np.array(inside or [reference])
    expected = optuna_hypervolume.compute_hypervolume(values, np.array(reference))
    assert hypervolume(points, reference) == pytest.approx(float(expected), abs=1e-9)


@given(clouds(3))
def test_only_the_front_counts_and_the_reference_point_is_beyond_all(points: list[Point]) -> None:
    reference = reference_point(points)
    leading = [points[index] for index in front(points)]
    assert hypervolume(points, reference) == hypervolume(leading, reference)
    assert all(a <= b for point in points for a, b in zip(point, reference, strict=True))
