"""The process of one trial: `python -m worker.trial TRIAL ATTEMPT PARENT`, started by the worker.

Torch is imported here and nowhere else in the worker.
"""

import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from search.spec import LearnerSettings
from search.trial import FinishedTrial, MemberLost, TrialOutcome
from service import jobs, logs
from service.artifacts import FolderStore
from service.db.session import Database, clock
from service.settings import Settings, get_settings
from worker.children import facts
from worker.parent import die_with
from worker.progress import RowProgress, in_transaction

log = logging.getLogger(__name__)


def main(trial_id: str, attempt: int, parent: int) -> None:
    """Run the attempt, if it is still ours to run, and write how it ended."""
    die_with(parent)
    settings = get_settings()
    logs.configure(settings)
    database = Database(settings.database)
    with database.read() as session:
        claim = jobs.claimed(session, trial_id, attempt=attempt)
    if claim is None:
        log.info("attempt %d at %s has been replaced", attempt, trial_id)
        return
    logs.note(**facts(claim))
    progress = RowProgress(database, claim, lease=timedelta(seconds=settings.lease_seconds))
    # The worker speaks for a terminal's Ctrl-C: its child is asked once, by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: progress.leave())
    with progress:
        _attempt(claim, progress, settings, database)
    database.dispose()


def _attempt(
    claim: jobs.Claim, progress: RowProgress, settings: Settings, database: Database
) -> None:
    try:
        outcome = _run(claim, progress, settings, database)
    except MemberLost:
        # As when this process is lost: the attempt ends here, and another goes on from its files.
        raise
    except Exception as error:
        _end(claim, progress, settings, database, _failure(error))
        raise
    if outcome.state == "CANCELLED" and progress.leaving:
        log.info("the worker stops: the trial is left for another to go on with")
        return
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


def _failure(error: Exception) -> jobs.Ending:
    # Torch has no class of its own for a processor's memory.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return jobs.Ending("FAILED", "out_of_memory", "it needs more memory than there is")
    sentence = f"it stopped with {type(error).__name__}; the worker's log has the details"
    return jobs.Ending("FAILED", "error", sentence)


def _run(
    claim: jobs.Claim, progress: RowProgress, settings: Settings, database: Database
) -> TrialOutcome:
    # Torch takes seconds to import, and the claim is renewed meanwhile.
    from search.run import run_trial  # noqa: PLC0415

    store = FolderStore(settings.home)
    folder = store.attempt(claim.search_id, claim.planned.number, claim.attempt)
    take_over(folder)
    history = [_finished(claim, past, store) for past in claim.history]
    return run_trial(
        claim.spec,
        claim.planned,
        history,
        settings=_proposed(claim, history, settings, database),
        uploads=store.uploads,
        cache=store.cache,
        folder=folder,
        threads=settings.trial_threads,
        progress=progress,
        fetched=settings.data_folder,
    )


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


def take_over(folder: Path) -> None:
    """Make the attempt's folder: a copy of the newest attempt's before it, if there is any."""
    number = int(folder.name.removeprefix("attempt-"))
    for earlier in range(number - 1, 0, -1):
        theirs = folder.with_name(f"attempt-{earlier}")
        if theirs.is_dir():
            # Copied, for an attempt that was only believed dead may still write there, under names
            # that begin with a dot; renamed, for a folder that is there is whole.
            arriving = folder.with_name(f"{folder.name}.arriving")
            shutil.copytree(theirs, arriving, ignore=shutil.ignore_patterns(".*"))
            arriving.rename(folder)
            log.info("going on from the files of attempt %d", earlier)
            return
    folder.mkdir(parents=True)


def _finished(claim: jobs.Claim, past: jobs.PastTrial, store: FolderStore) -> FinishedTrial:
    return FinishedTrial(
        planned=past.planned,
        state=past.state,
        settings=past.settings,
        validation_loss=past.validation_loss,
        curve=tuple((step, value) for step, value in past.curve if value is not None),
        folder=store.attempt(claim.search_id, past.planned.number, past.attempt),
        metrics=past.metrics,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    logging.shutdown()
    # All is written; to take torch apart in order would hold the next trial up by a second.
    os._exit(0)
