"""What can be asked about searches, answered alike by SQLite and by PostgreSQL."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from models.spec import NetworkSpec
from search.resolved import resolve
from search.spec import LearnerSettings, SearchSpec
from service import jobs
from service.db.session import Database
from service.db.tables import SearchRow
from service.errors import (
    ArtifactNotFound,
    IdempotencyConflict,
    NotYetThere,
    QueryRefused,
    SearchNotFound,
    SpecRefused,
    TrialNotFound,
)
from service.jobs import SearchFilter
from tests.integration.story import BASELINES, BEGINNING, FIRST, REFERENCE, SECOND, TINY, Story


@pytest.fixture
def story(database: Database) -> Story:
    return Story(database)


def listed(database: Database, wanted: SearchFilter, **page: Any) -> jobs.SearchPage:
    with database.read() as session:
        return jobs.list_searches(session, wanted, now=BEGINNING, **page)


def dense(story: Story) -> NetworkSpec:
    return resolve(story.spec).network


class TestAList:
    def test_is_newest_first_and_comes_in_pages(self, database: Database) -> None:
        ids = {Story(database).id for _ in range(5)}
        found: list[str] = []
        cursor = None
        for _ in range(3):
            page = listed(database, SearchFilter(), cursor=cursor, limit=2)
            found += [search.id for search in page.searches]
            cursor = page.cursor
        assert cursor is None
        assert found == sorted(ids, reverse=True)

    @pytest.mark.parametrize(
        ("wanted", "matches"),
        [
            (SearchFilter(state="QUEUED"), True),
            (SearchFilter(state="RUNNING"), False),
            (SearchFilter(tag="first", model="mlp", dataset="digits", name="one"), True),
            (SearchFilter(tag="other"), False),
            (SearchFilter(model="vit"), False),
            (SearchFilter(created_after=BEGINNING - timedelta(seconds=1)), True),
            (SearchFilter(created_after=BEGINNING), False),
            (SearchFilter(created_before=BEGINNING), False),
        ],
    )
    def test_can_be_filtered(self, database: Database, wanted: SearchFilter, matches: bool) -> None:
        story = Story(database, name="one", tags=["first", "second", "first"])
        found = [search.id for search in listed(database, wanted).searches]
        assert found == ([story.id] if matches else [])

    def test_refuses_a_cursor_that_is_none_of_ours(self, database: Database) -> None:
        for cursor in ("%%%", "bm9uZQ==", "W10=", "WzEsIDJd"):
            with pytest.raises(QueryRefused):
                listed(database, SearchFilter(), cursor=cursor)


class TestWhatIsNotThere:
    def test_is_said_to_be_missing(self, story: Story) -> None:
        with story.database.read() as session:
            with pytest.raises(SearchNotFound):
                jobs.get_search(session, "srch_0", now=story.now)
            with pytest.raises(SearchNotFound):
                jobs.list_trials(session, "srch_0", now=story.now)
            with pytest.raises(SearchNotFound):
                jobs.events(session, "srch_0")
            with pytest.raises(TrialNotFound):
                jobs.get_trial(session, story.id, 99, now=story.now)
            with pytest.raises(TrialNotFound):
                jobs.compare(session, [f"{story.id}-99"] * 2, now=story.now)
            with pytest.raises(ArtifactNotFound):
                jobs.get_artifact(session, "art_0")

    def test_may_come_yet(self, story: Story) -> None:
        with story.database.read() as session:
            with pytest.raises(NotYetThere, match="WAITING"):
                jobs.network(session, story.id, FIRST)
            with pytest.raises(NotYetThere):
                jobs.report(session, story.id)


class TestWhatWasFound:
    def test_is_the_network_and_what_its_eligible_layers_cost(self, story: Story) -> None:
        found = dense(story)
        story.run(REFERENCE, network=found, metrics={"validation_loss": 0.3})
        with story.database.read() as session:
            assert jobs.network(session, story.id, REFERENCE) == found
            assert jobs.dense_network(session, story.id) == found
        assert story.trial(REFERENCE).cost == story.search.dense_cost
        assert story.trial(REFERENCE).metrics == {"validation_loss": 0.3}
        assert story.search.best is None, "the dense network does not keep to the budget"

    def test_lies_on_a_front(self, story: Story) -> None:
        found = dense(story)
        story.run(REFERENCE, network=found, metrics={"validation_loss": 0.3})
        story.run(BASELINES[0], network=found, metrics={"validation_loss": 0.4})
        with story.database.read() as session:
            front = jobs.front(session, story.id)
        assert [(point.number, point.on_front) for point in front.items] == [(0, True), (1, False)]

    def test_is_compared_in_the_order_asked_for(self, story: Story) -> None:
        story.run(REFERENCE, *BASELINES[:2], network=dense(story))
        ids = [f"{story.id}-2", f"{story.id}-0"]
        with story.database.read() as session:
            compared = jobs.compare(session, ids, now=story.now)
        assert [column.trial.id for column in compared] == ids
        assert compared[0].eligible == ("layers.0", "layers.1")

    def test_has_curves_of_a_bounded_length_with_their_extremes(self, story: Story) -> None:
        claim = story.begin(REFERENCE)
        values = [("loss", step, 0.0) for step in range(1000)]
        values[417], values[803] = ("loss", 417, 9.0), ("loss", 803, -9.0)
        story.record(claim, *values)
        with story.database.read() as session:
            (curve,) = jobs.points(session, story.id, REFERENCE, max_points=50).values()
        assert len(curve) <= 50
        assert {(0, 0.0), (417, 9.0), (803, -9.0), (999, 0.0)} <= set(curve)


class TestAnIdempotencyKey:
    def recall(self, story: Story, body: str) -> jobs.StoredAnswer | None:
        return story.write(lambda s: jobs.recall(s, "key", body_sha256=body, now=story.now))

    def answer(self, story: Story) -> None:
        with story.database.write() as session:
            assert jobs.recall(session, "key", body_sha256="a" * 64, now=story.now) is None
            jobs.remember(session, "key", status=202, answer={"id": "srch_1"})

    def test_gives_the_same_answer_to_the_same_body(self, story: Story) -> None:
        self.answer(story)
        assert self.recall(story, "a" * 64) == jobs.StoredAnswer(202, {"id": "srch_1"})

    def test_refuses_another_body(self, story: Story) -> None:
        self.answer(story)
        with pytest.raises(IdempotencyConflict):
            self.recall(story, "b" * 64)

    def test_of_a_request_that_failed_is_free_again(self, story: Story) -> None:
        def fail(session: Session) -> None:
            jobs.recall(session, "key", body_sha256="a" * 64, now=story.now)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            story.write(fail)
        self.answer(story)


class TestAWarmStart:
    def ended(self, database: Database) -> Story:
        story = Story(database)
        story.run(REFERENCE, *BASELINES)
        for number, group in ((FIRST, 1), (SECOND, 16)):
            claim = story.begin(number)
            with database.write() as session:
                jobs.save_settings(session, claim, LearnerSettings(group=group))
            story.finish(claim, metrics={"validation_loss": 0.1 * number})
        story.cancel()
        return story

    def test_copies_the_candidates_into_every_claim_of_one(self, database: Database) -> None:
        earlier = self.ended(database)
        later = Story(database, warm_start=earlier.id, budget={"ratio": 0.4})
        told = later.search.warm_start
        assert told is not None
        assert (told.search_id, told.told, told.outside) == (earlier.id, 1, 1)
        assert "1 more lie outside" in told.sentence
        reference = later.begin(REFERENCE)
        assert reference.earlier == ()
        later.finish(reference)
        found = later.begin(FIRST).earlier
        assert [one.settings.group for one in found] == [1, 16]
        assert [one.validation_loss for one in found] == pytest.approx([0.5, 0.6])

    def test_says_that_the_earlier_search_is_gone_and_goes_on(self, database: Database) -> None:
        earlier = self.ended(database)
        later = Story(database, warm_start=earlier.id)
        later.run(REFERENCE)
        with database.write() as session:
            session.delete(session.get_one(SearchRow, earlier.id))
        assert later.search.warm_start is not None
        assert "has been deleted since" in later.search.warm_start.sentence
        assert len(later.begin(FIRST).earlier) == 2


class TestASpecThatCannotWork:
    def refused(self, database: Database, **changes: Any) -> SpecRefused:
        spec = SearchSpec.model_validate({**TINY, **changes})
        with database.read() as session, pytest.raises(SpecRefused) as caught:
            jobs.resolve_spec(session, spec)
        return caught.value

    def test_names_the_field(self, database: Database) -> None:
        assert self.refused(database, budget={"ratio": 0.01}).field == "budget"
        assert self.refused(database, layers={"include": ["nothing"]}).field == "layers.include"
        unknown = {"kind": "matrix", "artifact": "art_0"}
        assert self.refused(database, model=unknown, dataset=None).field == "model.artifact"

    def test_works_once_its_matrix_is_uploaded(self, database: Database) -> None:
        matrix = jobs.ArtifactView(
            id="art_1",
            kind="matrix",
            sha256="0" * 64,
            bytes=100,
            tensor="weight",
            dtype="F32",
            rows=6,
            columns=4,
            created_at=BEGINNING,
        )
        model = {"kind": "matrix", "artifact": "art_1"}
        spec = SearchSpec.model_validate({**TINY, "model": model, "dataset": None})
        with database.write() as session:
            assert [jobs.add_artifact(session, matrix) for _ in range(2)] == [True, False]
            assert jobs.get_artifact(session, matrix.id) == matrix
            resolved = jobs.resolve_spec(session, spec)
            view = jobs.submit(session, spec, resolved=resolved, now=BEGINNING)
        assert view.dense_cost == 24
