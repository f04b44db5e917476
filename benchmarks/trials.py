"""Single trials without a search around them, each made from a reference that is trained once."""

from pathlib import Path

from search.fetch import FOLDER
from search.plan import PlannedTrial
from search.progress import Silent
from search.run import run_trial
from search.spec import LearnerSettings, SearchSpec
from search.trial import FinishedTrial, TrialOutcome

REFERENCE = PlannedTrial(0, "reference")


def run_alone(
    spec: SearchSpec,
    planned: PlannedTrial,
    *,
    home: Path,
    folder: Path,
    reference: Path,
    settings: LearnerSettings | None = None,
    threads: int,
    fetched: Path = FOLDER,
) -> TrialOutcome:
    """Run a trial in `folder` whose reference lies, or is to lie, in a folder of its own.

    Cache and uploads are in `home`. Raises RuntimeError, with its sentence, unless it completes.
    """
    known = [FinishedTrial(REFERENCE, "COMPLETE", None, None, (), reference)]
    outcome = run_trial(
        spec,
        planned,
        [] if planned == REFERENCE else known,
        settings=settings,
        uploads=home,
        cache=home / "cache",
        folder=folder,
        fetched=fetched,
        threads=threads,
        progress=Silent(),
    )
    if outcome.state != "COMPLETE":
        raise RuntimeError(f"{folder.name}, seed {spec.seed}: {outcome.sentence}")
    return outcome
