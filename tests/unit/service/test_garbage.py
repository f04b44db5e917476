"""What nothing refers to goes when it is old, and nothing else ever does."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update

from service import jobs
from service.artifacts import ArtifactStore
from service.db.session import Database
from service.db.tables import AnswerRow, ArtifactRow, SearchRow
from service.errors import ArtifactNotFound, SpecRefused
from service.garbage import Collector
from service.jobs.garbage import hold_upload
from service.settings import Settings
from service.storage import make_storage
from tests.integration.story import REFERENCE, Story
from tests.unit.service.test_artifacts import WHOLE, put

AGES_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def story(database: Database) -> Story:
    return Story(database)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home")


def collected(story: Story, store: ArtifactStore, *, dry_run: bool = False) -> dict[str, str]:
    settings = Settings(home=store.home)
    collector = Collector(settings, story.database, store, dry_run=dry_run)
    collector._now = datetime.now(UTC)
    return {garbage.name: garbage.why for garbage in collector.run()}


def write(path: Path, *, old: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text")
    if old:
        os.utime(path, (AGES_AGO.timestamp(),) * 2)
    return path


def test_old_attempts_of_ended_trials_go_and_their_logs_stay(
    story: Story, store: ArtifactStore
) -> None:
    story.release(story.begin(REFERENCE))
    lost, won = (store.attempt(story.id, REFERENCE, attempt) for attempt in (1, 2))
    first, log = write(lost / "checkpoint.safetensors"), write(lost.with_suffix(".log"))
    second = write(won / "export/network.json")
    half = write(won / ".export-17")
    claim = story.begin(REFERENCE)
    assert set(collected(story, store)) == {half.relative_to(store.home).as_posix()}
    story.finish(claim)
    young = write(lost / "held.safetensors", old=False)
    told = collected(story, store, dry_run=True)
    assert set(told) == {first.relative_to(store.home).as_posix()}
    assert first.exists()
    assert collected(story, store) == told
    assert not first.exists()
    assert all(path.exists() for path in (log, second, young))


def test_files_of_a_search_that_was_deleted_go(story: Story, store: ArtifactStore) -> None:
    gone = [write(store.attempt("srch_gone", 0, 1) / name) for name in ("a", "b/c")]
    young = write(store.attempt("srch_new", 0, 1) / "a", old=False)
    assert set(collected(story, store).values()) == {"its search was deleted"}
    assert not any(path.exists() for path in gone)
    assert not (store.home / "searches/srch_gone").exists()
    assert young.exists()


def _matrix_search(story: Story, artifact_id: str) -> None:
    spec: dict[str, Any] = {"model": {"kind": "matrix", "artifact": artifact_id}, "dataset": None}
    spec |= {"budget": {"ratio": 0.7}}
    told = Story(story.database, **spec, space={"baselines": ["uniform_low_rank"]})
    assert told.search.state == "QUEUED"


def _uploaded(story: Story, store: ArtifactStore, content: bytes) -> str:
    kept = put(store, content)
    story.write(lambda session: jobs.add_artifact(session, kept))
    os.utime(store.uploads / kept.id, (AGES_AGO.timestamp(),) * 2)
    return str(kept.id)


def test_uploads_that_no_search_names_go(story: Story, store: ArtifactStore) -> None:
    used = _uploaded(story, store, WHOLE)
    _matrix_search(story, used)
    unused = _uploaded(story, store, WHOLE.replace(b"weight", b"thgiew"))
    stray = write(store.uploads / f"arriving-{uuid4().hex}")
    assert len(collected(story, store, dry_run=True)) == 2
    assert set(collected(story, store)) == {f"artifacts/{unused}", f"artifacts/{stray.name}"}
    assert [path.name for path in store.uploads.iterdir()] == [used]
    with pytest.raises(SpecRefused):
        _matrix_search(story, unused)
    with pytest.raises(ArtifactNotFound), story.database.write() as session:
        hold_upload(session, unused)


def test_an_upload_that_is_sent_again_stays(story: Story, store: ArtifactStore) -> None:
    kept = _uploaded(story, store, WHOLE)
    put(store, WHOLE)
    now = datetime.now(UTC)
    story.write(lambda session: session.execute(update(ArtifactRow).values(created_at=now)))
    assert collected(story, store) == {}
    assert store.upload(kept).read_bytes() == WHOLE


def test_answers_and_caches_expire(story: Story, store: ArtifactStore) -> None:
    story.write(lambda session: jobs.recall(session, "old", body_sha256="", now=AGES_AGO))
    now = datetime.now(UTC)
    story.write(lambda session: jobs.recall(session, "new", body_sha256="", now=now))
    old = write(store.cache / "references/old/network.json")
    new = write(store.cache / "references/new/network.json", old=False)
    lock = write(store.cache / "latency.lock")
    assert "1 answers" in collected(story, store)
    assert not old.exists()
    assert new.exists()
    assert lock.exists()
    with story.database.read() as session:
        assert [row.key for row in session.query(AnswerRow)] == ["new"]


def test_copies_of_what_a_store_has_go_and_are_fetched_again(story: Story, tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = ArtifactStore(home, make_storage(f"memory://{uuid4().hex}", home))
    long_ago = datetime.now(UTC) - timedelta(days=60)
    where = (story.id, REFERENCE, 1)
    path = write(store.attempt(*where) / "export/network.json")
    store.save(*where)
    upload = _uploaded(story, store, WHOLE)
    _matrix_search(story, upload)
    assert collected(story, store) == {f"artifacts/{upload}": "a copy of what the store has"}
    story.write(
        lambda session: session.execute(
            update(SearchRow).where(SearchRow.id == story.id).values(ended_at=long_ago)
        )
    )
    collected(story, store)
    assert not path.exists()
    (file,) = store.exports(*where)
    assert store.fetch(file).read_text() == "text"
    assert store.upload(upload).read_bytes() == WHOLE
