"""A store of files that is away for a while costs no trial and ends no thread of a worker."""

import signal
import sys
from datetime import timedelta
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from types import ModuleType
from typing import Any, BinaryIO, final

import pytest

from search.trial import TrialOutcome
from service import jobs
from service.artifacts import ArtifactStore
from service.settings import Settings
from tests.closing import Unreachable, closing_storage
from tests.integration.story import REFERENCE, Story
from worker import housekeeping, keeping, trial
from worker.children import Children
from worker.housekeeping import Housekeeping
from worker.keeping import Keeping
from worker.launching import Launcher, Order, TrialProcess
from worker.progress import RowProgress


def until_kept(store: ArtifactStore, where: tuple[str, int, int], name: str) -> None:
    until = monotonic() + 10
    while name not in [file.name for file in store.files(*where)]:
        assert monotonic() < until, "it was never kept"
        sleep(0.02)


def test_what_a_trial_writes_is_kept_again_when_the_store_is_back(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "KEEP_SECONDS", 0.02)
    storage, files = closing_storage()
    store, elsewhere = (ArtifactStore(tmp_path / name, storage) for name in ("home", "other"))
    claim = story.begin(REFERENCE)
    where = (claim.search_id, REFERENCE, claim.attempt)
    folder = store.attempt(*where)
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_text("state")
    elsewhere.attempt(*where).mkdir(parents=True)
    with Keeping(store, claim) as kept:
        until_kept(elsewhere, where, "checkpoint.safetensors")
        files.closed = True
        (folder / "later").write_text("state")
        sleep(0.1)
        files.closed = False
        until_kept(elsewhere, where, "later")
        assert kept._thread.is_alive()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_garbage_is_collected_after_a_round_that_failed(
    settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, again = [Unreachable("first"), ValueError("second")], Event()

    def collect(*_: object) -> int:
        if rounds:
            raise rounds.pop(0)
        again.set()
        return 0

    monkeypatch.setattr(housekeeping, "collect", collect)
    thread = Housekeeping(settings.model_copy(update={"gc_seconds": 0.01}), story.database)
    thread.start()
    assert again.wait(10)
    thread.stop()
    thread._thread.join()


@final
class Inside(TrialProcess, Launcher):
    """A trial in this process, which trains for no time at all; the store closes at its end."""

    def __init__(self, story: Story, settings: Settings) -> None:
        self._story = story
        self._settings = settings
        self._status = 0

    @property
    def begun(self) -> bool:
        return True

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        pass

    def launch(self, order: Order, output: BinaryIO) -> TrialProcess:
        database = self._story.database
        with database.read() as session:
            claim = jobs.claimed(session, order.trial_id, attempt=order.attempt)
        assert claim is not None
        try:
            with RowProgress(database, claim, lease=timedelta(seconds=60)) as progress:
                trial._attempt(claim, progress, self._settings, database)
        except SystemExit as left:
            self._status = int(str(left.code))
        else:
            self._status = 0
        return self

    def wait(self, seconds: float) -> int | None:
        return self._status

    def send(self, number: signal.Signals) -> None:
        pass


def test_a_training_that_ended_while_the_store_was_away_is_given_back_and_goes_on(
    settings: Settings, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, files = closing_storage()
    store = ArtifactStore(settings.home, storage)
    found: list[list[str]] = []

    def run_trial(*_: object, folder: Path, **__: Any) -> TrialOutcome:
        found.append([path.name for path in folder.iterdir()])
        (folder / "checkpoint.safetensors").write_text("all epochs")
        files.closed = len(found) == 1
        return TrialOutcome("COMPLETE")

    module = ModuleType("search.run")
    module.run_trial = run_trial  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "search.run", module)
    monkeypatch.setattr(trial, "make_store", lambda _: store)
    children = Children(settings, story.database, Inside(story, settings))
    children.run(f"{story.id}-{REFERENCE}")
    assert story.told_of(REFERENCE) == ["WAITING", "RUNNING", "WAITING"]
    assert (story.trial(REFERENCE).reason, story.trial(REFERENCE).losses) == ("store_away", 0)
    hints = settings.home / "broker/messages"
    assert list(hints.glob("*.msg")) == [], "it waits, as for room"
    children.run(f"{story.id}-{REFERENCE}")  # while it is still away: nothing can be restored
    assert story.told_of(REFERENCE)[3:] == ["RUNNING", "WAITING"]
    files.closed = False
    children.run(f"{story.id}-{REFERENCE}")
    assert story.trial(REFERENCE).state == "COMPLETE"
    assert found == [[], ["checkpoint.safetensors"]]
    assert store.files(story.id, REFERENCE, 3) == ()
