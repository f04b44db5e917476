"""What nothing refers to any longer, by the rows: uploads, answers, and whose files are whose."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from search.plan import ENDED
from service.db.tables import AnswerRow, ArtifactRow, SearchRow, TrialRow
from service.errors import ArtifactNotFound


@dataclass(frozen=True, slots=True)
class TrialFiles:
    """Which attempt of a trial counts, and whether it is the last word."""

    attempt: int
    ended: bool


def trial_files(
    session: Session, search_ids: Collection[str]
) -> Mapping[str, Mapping[int, TrialFiles]]:
    """Say of each of these searches that there is which attempts its trials have come to."""
    found: dict[str, dict[int, TrialFiles]] = {
        search_id: {}
        for search_id in session.scalars(select(SearchRow.id).where(SearchRow.id.in_(search_ids)))
    }
    rows = session.execute(
        select(TrialRow.search_id, TrialRow.number, TrialRow.attempt, TrialRow.state).where(
            TrialRow.search_id.in_(search_ids)
        )
    )
    for search_id, number, attempt, state in rows:
        found[search_id][number] = TrialFiles(attempt, state in ENDED)
    return found


def ended_before(session: Session, search_ids: Collection[str], *, before: datetime) -> set[str]:
    """Name those of these searches that have been over since then."""
    statement = select(SearchRow.id).where(
        SearchRow.id.in_(search_ids), SearchRow.ended_at.is_not(None), SearchRow.ended_at < before
    )
    return set(session.scalars(statement))


def known_uploads(session: Session, artifact_ids: Collection[str]) -> set[str]:
    """Name those of these uploads that have a row."""
    return set(session.scalars(select(ArtifactRow.id).where(ArtifactRow.id.in_(artifact_ids))))


def unused_uploads(session: Session, *, before: datetime) -> Sequence[str]:
    """Name the uploads of before a moment that no search names."""
    named = SearchRow.spec["model"]["artifact"].as_string()
    used = select(named).where(SearchRow.model == "matrix", named.is_not(None))
    statement = select(ArtifactRow.id).where(
        ArtifactRow.created_at < before, ArtifactRow.id.not_in(used)
    )
    return session.scalars(statement.order_by(ArtifactRow.id)).all()


def forget_uploads(session: Session, *, before: datetime) -> Sequence[str]:
    """Delete the rows of unused uploads; a search that names one just now comes first."""
    candidates = unused_uploads(session, before=before)
    session.execute(
        select(ArtifactRow.id)
        .where(ArtifactRow.id.in_(candidates))
        .order_by(ArtifactRow.id)
        .with_for_update()
    ).all()
    # Asked again, for whoever submits holds the row until the search is there.
    unused = set(candidates) & set(unused_uploads(session, before=before))
    session.execute(delete(ArtifactRow).where(ArtifactRow.id.in_(unused)))
    return sorted(unused)


def hold_upload(session: Session, artifact_id: str) -> None:
    """Keep an upload from being forgotten in this transaction; ArtifactNotFound if it is."""
    statement = select(ArtifactRow.id).where(ArtifactRow.id == artifact_id)
    if session.scalars(statement.with_for_update(read=True)).one_or_none() is None:
        raise ArtifactNotFound(artifact_id)


def forget_answers(session: Session, *, before: datetime, dry_run: bool) -> int:
    """Delete the answers to idempotent requests of before a moment; give how many."""
    expired = AnswerRow.created_at < before
    count = session.scalar(select(func.count()).select_from(AnswerRow).where(expired)) or 0
    if count and not dry_run:
        session.execute(delete(AnswerRow).where(expired))
    return count
