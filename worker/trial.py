"""The process of one trial: the worker's nursery forks it, or Python is started for it.

`python -m worker.trial TRIAL ATTEMPT PARENT` imports torch no earlier than its claim is kept.
"""

import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from models.durable import wants_room
from models.spec import Matrix
from search.spec import LearnerSettings
from search.trial import FinishedTrial, MemberLost, TrialOutcome
from service import jobs, logs, tracing
from service.artifacts import LIST, ArtifactStore, make_store
from service.db.session import Database, clock
from service.errors import ArtifactNotFound
from service.settings import Settings, get_settings
from service.storage import StorageAway
from worker.keeping import Keeping
from worker.parent import AWAY, LEFT, NO_ROOM, die_with, facts
from worker.progress import RowProgress, in_transaction

# What the measurement writes beside the networks that it measures.
MEASURED = frozenset({"export/network.pt2", "export/forms.json"})

log = logging.getLogger(__name__)


def main(trial_id: str, attempt: int, parent: int) -> int:
    """Run the attempt, if it is still ours to run, write how it ended, and give the exit status."""
    die_with(parent)
    settings = get_settings()
    logs.configure(settings)
    tracing.configure("matnas-trial")
    database = Database(settings.database)
    with database.read() as session:
        claim = jobs.claimed(session, trial_id, attempt=attempt)
    if claim is None:
        log.info("attempt %d at %s has been replaced", attempt, trial_id)
        return 0
    logs.note(**facts(claim))
    progress = RowProgress(database, claim, lease=timedelta(seconds=settings.lease_seconds))
    # The worker speaks for a terminal's Ctrl-C: its child is asked once, by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: progress.leave())
    try:
        with progress, tracing.span("matnas.attempt", parent=os.environ.get("TRACEPARENT")):
            left = _attempt(claim, progress, settings, database)
    finally:
        tracing.flush()
    database.dispose()
    return LEFT if left else 0


def _attempt(
    claim: jobs.Claim, progress: RowProgress, settings: Settings, database: Database
) -> bool:
    """Whether the trial is left for another attempt to go on with."""
    try:
        outcome = _run(claim, progress, settings, database)
    except MemberLost:
        # As when this process is lost: the attempt ends here, and another goes on from its files.
        raise
    except Exception as error:
        if wants_room(error):
            # No fault of the trial's: the worker gives it back, and it goes on when there is room.
            log.exception("there is no room for the trial's files")
            sys.exit(NO_ROOM)
        if isinstance(error, StorageAway):
            # Nor is this: it goes on from its files when they can be had again.
            log.exception("the store of the trial's files is away")
            sys.exit(AWAY)
        _end(claim, progress, settings, database, _failure(error))
        raise
    if outcome.state == "CANCELLED" and progress.leaving:
        log.info("the trial is left with its checkpoint, to be gone on with")
        return True
    ending = jobs.Ending(
        state=outcome.state,
        reason=outcome.reason,
        sentence=outcome.sentence,
        network=outcome.network,
        metrics=outcome.metrics,
        report=outcome.report,
        profile=outcome.profile,
        times=outcome.times,
    )
    _end(claim, progress, settings, database, ending)
    return False


def _failure(error: Exception) -> jobs.Ending:
    if _wants_memory(error):
        return jobs.Ending("FAILED", "out_of_memory", "it needs more memory than there is")
    sentence = f"it stopped with {type(error).__name__}; the worker's log has the details"
    return jobs.Ending("FAILED", "error", sentence)


def _wants_memory(error: Exception) -> bool:
    # Torch's class is known by its name, for this module does without torch; the memory of a
    # processor, and of Apple's graphics, has no class of its own.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in ("can't allocate memory", "out of memory"))


def _run(
    claim: jobs.Claim, progress: RowProgress, settings: Settings, database: Database
) -> TrialOutcome:
    # Torch takes seconds to import, and the claim is renewed meanwhile.
    from search.run import run_trial  # noqa: PLC0415

    store = make_store(settings)
    folder = take_over(store, claim.search_id, claim.planned.number, claim.attempt)
    history = [_finished(claim, past, store) for past in claim.history]
    with Keeping(store, claim):
        outcome = run_trial(
            claim.spec,
            claim.planned,
            history,
            settings=_proposed(claim, history, settings, database),
            uploads=_uploads(claim, store),
            cache=store.cache,
            folder=folder,
            threads=settings.trial_threads,
            progress=progress,
            fetched=settings.data_folder,
        )
    _keep(claim, outcome, store)
    return outcome


def _uploads(claim: jobs.Claim, store: ArtifactStore) -> Path:
    if isinstance(claim.spec.model, Matrix):
        store.upload(claim.spec.model.artifact)  # so that it is here, and what was sent
    return store.uploads


def _keep(claim: jobs.Claim, outcome: TrialOutcome, store: ArtifactStore) -> None:
    folder = store.attempt(claim.search_id, claim.planned.number, claim.attempt)
    # From a complete trial's nobody goes on, unless the store takes none of its files now.
    complete = outcome.state == "COMPLETE"
    done = list(folder.glob("checkpoint*.safetensors")) if complete else []
    while store.is_local and done:
        done.pop().unlink()  # their room may be what the list of the others needs
    with _set_aside(done):
        store.save(claim.search_id, claim.planned.number, claim.attempt)
    if claim.planned.kind == "measurement":
        for past in claim.history:
            if past.state == "COMPLETE":
                store.save(claim.search_id, past.planned.number, past.attempt)


@contextmanager
def _set_aside(files: Sequence[Path]) -> Iterator[None]:
    """Hide files, and remove them at the end; after an error they are there again."""
    hidden = {path: path.replace(path.with_name(f".{path.name}")) for path in files}
    try:
        yield
    except BaseException:
        for path, aside in hidden.items():
            aside.replace(path)
        raise
    for aside in hidden.values():
        aside.unlink()


def _proposed(
    claim: jobs.Claim, history: Sequence[FinishedTrial], settings: Settings, database: Database
) -> LearnerSettings | None:
    if claim.planned.kind != "candidate" or claim.settings is not None:
        return claim.settings
    from search.sampling import propose  # noqa: PLC0415  (Optuna, which the others do without)

    proposed = propose(claim.spec, claim.planned, history, claim.earlier)
    if proposed is not None:
        in_transaction(
            database,
            lambda session: jobs.save_settings(session, claim, proposed),
            seconds=settings.lease_seconds,
        )
    return proposed


def _end(
    claim: jobs.Claim,
    progress: RowProgress,
    settings: Settings,
    database: Database,
    ending: jobs.Ending,
) -> None:
    progress.flush()
    ours = in_transaction(
        database,
        lambda session: jobs.finish(session, claim, ending, now=clock(session)),
        seconds=settings.lease_seconds,
    )
    log.info("%s %s, %s", ending.state, ending.reason, "written" if ours else "but replaced")


def take_over(store: ArtifactStore, search_id: str, number: int, attempt: int) -> Path:
    """Make the attempt's folder: a copy of the newest attempt's before it, if there is any."""
    folder = store.attempt(search_id, number, attempt)
    for earlier in range(attempt - 1, 0, -1):
        theirs = store.attempt(search_id, number, earlier)
        if not store.is_local:
            with suppress(ArtifactNotFound):  # its writer lives, and has just replaced it
                store.restore(search_id, number, earlier)
        if theirs.is_dir():
            # Copied, for an attempt that was only believed dead may still write there, under names
            # that begin with a dot; renamed, for a folder that is there is whole.
            arriving = folder.with_name(f"{folder.name}.arriving")
            shutil.rmtree(arriving, ignore_errors=True)  # of a process that died at this
            shutil.copytree(theirs, arriving, ignore=shutil.ignore_patterns(".*", LIST))
            arriving.rename(folder)
            log.info("going on from the files of attempt %d", earlier)
            return folder
    folder.mkdir(parents=True)
    return folder


def _finished(claim: jobs.Claim, past: jobs.PastTrial, store: ArtifactStore) -> FinishedTrial:
    where = (claim.search_id, past.planned.number, past.attempt)
    measures = claim.planned.kind == "measurement"
    if past.state == "COMPLETE" and (measures or past.planned.kind == "reference"):
        folder = store.restore(*where, besides=MEASURED if measures else ())
    else:
        folder = store.attempt(*where)  # whose files nobody reads
    return FinishedTrial(
        planned=past.planned,
        state=past.state,
        settings=past.settings,
        validation_loss=past.validation_loss,
        curve=tuple((step, value) for step, value in past.curve if value is not None),
        folder=folder,
        metrics=past.metrics,
    )


def run_and_leave(trial_id: str, attempt: int, parent: int) -> NoReturn:
    """Be the process of an attempt, to its end."""
    try:
        status = main(trial_id, attempt, parent)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:  # noqa: BLE001  (the edge of the process)
        traceback.print_exc()
        status = 1
    logging.shutdown()
    sys.stdout.flush()
    # All is written; to take torch apart in order would hold the next trial up by a second.
    os._exit(status)


if __name__ == "__main__":
    run_and_leave(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
