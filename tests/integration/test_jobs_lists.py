"""Every order, filter and page of the lists, against the same done by hand over all rows."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, get_args

import pytest

from service import jobs
from service.db.session import Database
from service.db.tables import SearchRow, TrialRow
from service.jobs import SearchFilter, SearchSort, TrialFilter, TrialSort
from tests.integration.story import BASELINES, BEGINNING, REFERENCE, Story

# Of each value some are alike and some missing: then another decides, or they come last.
NAMES = ("b", None, "a", "b", "c", None)
LOSSES = (0.5, 0.25, None, 0.5, None, 0.125)
PRIORITIES = (0, 7, -7, 0, 7, 0)


@pytest.fixture
def listed(database: Database) -> list[jobs.SearchView]:
    """All searches, none of which is like another in everything."""
    for index, name in enumerate(NAMES):
        story = Story(database, name=name, tags=["even"] if index % 2 == 0 else ["odd", "both"])
        with database.write() as session:
            row = session.get_one(SearchRow, story.id)
            row.best_loss, row.priority = LOSSES[index], PRIORITIES[index]
            row.created_at = BEGINNING + timedelta(hours=index // 2)
        if index == 3:
            story.cancel()
    with database.read() as session:
        return list(jobs.list_searches(session, SearchFilter(), now=BEGINNING, limit=99).searches)


@pytest.fixture
def tried(database: Database) -> Story:
    """A search whose trials have gone different ways."""
    story = Story(database)
    story.run(REFERENCE, metrics={"validation_loss": 0.25})
    story.later(1)
    story.run(BASELINES[0], metrics={"validation_loss": 0.5})
    story.record(story.begin(BASELINES[1], "two"), ("validation_loss", 1, 0.75))
    story.run(BASELINES[2], metrics={"validation_loss": 0.5})
    with database.write() as session:
        for number, cost in ((0, 3), (1, 2), (2, 2)):
            row = session.get_one(TrialRow, f"{story.id}-{number}")
            row.cost, row.latency_ratio = cost, cost / 4
    return story


def pages(ask: Callable[[str | None], tuple[Sequence[Any], str | None]]) -> list[Any]:
    page, cursor = ask(None)
    found = list(page)
    while cursor is not None:
        page, cursor = ask(cursor)
        found += page
    return found


def by_hand(views: Sequence[Any], sort: str, value: Callable[[Any], Any], key: str) -> list[Any]:
    """In order of the value and then of the key; what has no value last."""
    down = sort.startswith("-")
    known = [view for view in views if value(view) is not None]
    known.sort(key=lambda view: (value(view), getattr(view, key)), reverse=down)
    missing = [view for view in views if value(view) is None]
    return known + sorted(missing, key=lambda view: getattr(view, key), reverse=down)


def test_searches_in_every_order(database: Database, listed: list[jobs.SearchView]) -> None:
    losses: dict[str, float | None] = {}
    with database.read() as session:
        losses = {one.id: session.get_one(SearchRow, one.id).best_loss for one in listed}
    values: dict[str, Callable[[jobs.SearchView], Any]] = {
        "best_loss": lambda view: losses[view.id],
        "created_at": lambda view: view.created_at,
        "name": lambda view: view.name,
        "priority": lambda view: view.priority,
    }
    for sort in get_args(SearchSort):
        found = pages(partial(ask, database, sort, SearchFilter()))
        expected = by_hand(listed, sort, values[sort.lstrip("-")], "id")
        assert [one.id for one in found] == [one.id for one in expected], sort


def ask(
    database: Database, sort: SearchSort, wanted: SearchFilter, cursor: str | None
) -> tuple[Sequence[jobs.SearchView], str | None]:
    with database.read() as session:
        page = jobs.list_searches(session, wanted, now=BEGINNING, cursor=cursor, limit=2, sort=sort)
    return page.searches, page.cursor


@pytest.mark.usefixtures("listed")
def test_searches_within_a_range_of_what_they_found(database: Database) -> None:
    def names(wanted: SearchFilter) -> list[str | None]:
        return [one.name for one in pages(partial(ask, database, "best_loss", wanted))]

    assert names(SearchFilter(loss_to=0.25)) == [None, None]
    assert names(SearchFilter(loss_from=0.25, loss_to=0.5, tag="odd")) == [None, "b"]
    assert names(SearchFilter(loss_from=0.25, state="CANCELLED")) == ["b"]
    assert names(SearchFilter(loss_from=0.6)) == []
    late = BEGINNING + timedelta(hours=1)
    assert sorted(map(str, names(SearchFilter(created_after=late)))) == ["None", "c"]
    assert names(SearchFilter(created_before=late, tag="both")) == [None]


def test_trials_in_every_order(database: Database, tried: Story) -> None:
    with database.read() as session:
        every = jobs.list_trials(session, tried.id, now=tried.now)
    values: dict[str, Callable[[jobs.TrialView], Any]] = {
        "number": lambda view: view.number,
        "validation_loss": lambda view: (view.metrics or view.latest).get("validation_loss"),
        "cost": lambda view: view.cost,
        "latency_ratio": lambda view: view.latency_ratio,
        "started_at": lambda view: view.started_at,
    }
    assert [values["validation_loss"](view) for view in every][:4] == [0.25, 0.5, 0.75, 0.5]
    for sort in get_args(TrialSort):
        found = pages(partial(ask_trials, tried, sort, TrialFilter()))
        expected = by_hand(every, sort, values[sort.lstrip("-")], "number")
        assert [one.number for one in found] == [one.number for one in expected], sort


def ask_trials(
    story: Story, sort: TrialSort, wanted: TrialFilter, cursor: str | None
) -> tuple[Sequence[jobs.TrialView], str | None]:
    with story.database.read() as session:
        page = jobs.page_of_trials(
            session, story.id, wanted, now=story.now, cursor=cursor, limit=3, sort=sort
        )
    return page.trials, page.cursor


def test_trials_that_are_or_found_something(tried: Story) -> None:
    def numbers(sort: TrialSort = "number", **wanted: Any) -> list[int]:
        found = pages(partial(ask_trials, tried, sort, TrialFilter(**wanted)))
        return [one.number for one in found]

    assert numbers(state="COMPLETE") == [0, 1, 3]
    assert numbers(worker="two", state="RUNNING") == [2]
    assert numbers(kind="candidate", sort="-number") == [6, 5]
    # What runs counts with its newest value.
    assert numbers(loss_from=0.5, sort="-validation_loss") == [2, 3, 1]
    assert numbers(loss_from=0.3, loss_to=0.6, cost_to=2) == [1]
    assert numbers(cost_from=2, cost_to=2) == [1, 2]
