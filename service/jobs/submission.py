"""What a client can do: hand in an artifact, hand in a search, cancel it."""

from datetime import datetime
from uuid import uuid4

from sqlalchemy.orm import Session

from models.spec import Matrix
from search.plan import planned_trials
from search.resolved import ResolvedSearch
from search.spec import SearchSpec
from service.db.queries import insert_if_new
from service.db.tables import ArtifactRow, SearchRow, TagRow, TrialRow
from service.errors import ArtifactNotFound, WrongState
from service.jobs.garbage import hold_upload
from service.jobs.reading import get_search
from service.jobs.transitions import (
    Cause,
    advance,
    append_event,
    cancel_waiting,
    lock_search,
    move_search,
    trials_of,
)
from service.jobs.views import ArtifactView, SearchView
from service.jobs.warm import warm_start


def add_artifact(session: Session, artifact: ArtifactView) -> ArtifactView:
    """Remember an upload; the same bytes are the same artifact, whoever sends them again."""
    row = {
        name: getattr(artifact, name)
        for name in (
            *("id", "kind", "sha256", "bytes", "tensor"),
            *("dtype", "rows", "columns", "created_at"),
        )
    }
    insert_if_new(session, ArtifactRow, row, key=["id"])
    return get_artifact(session, artifact.id)


def get_artifact(session: Session, artifact_id: str) -> ArtifactView:
    """One upload, or ArtifactNotFound."""
    row = session.get(ArtifactRow, artifact_id)
    if row is None:
        raise ArtifactNotFound(artifact_id)
    return ArtifactView(
        id=row.id,
        kind=row.kind,
        sha256=row.sha256,
        bytes=row.bytes,
        tensor=row.tensor,
        dtype=row.dtype,
        rows=row.rows,
        columns=row.columns,
        created_at=row.created_at,
    )


def submit(
    session: Session,
    spec: SearchSpec,
    *,
    resolved: ResolvedSearch,
    now: datetime,
    request_id: str | None = None,
    trace: str | None = None,
) -> SearchView:
    """Insert a search with every trial it will have; they wait for `hints_due` to send them out."""
    if isinstance(spec.model, Matrix):
        hold_upload(session, spec.model.artifact)
    search_id = f"srch_{uuid4().hex}"
    cause = Cause("client", now, request_id=request_id)
    row = _search_row(search_id, spec, resolved, now)
    row.request_id, row.trace = request_id, trace
    if spec.warm_start is not None:
        earlier, row.warm_start = warm_start(session, spec, resolved, spec.warm_start)
        row.earlier = [one.model_dump(mode="json") for one in earlier]
    session.add(row)
    session.flush()
    session.add_all(TagRow(search_id=search_id, tag=tag) for tag in dict.fromkeys(spec.tags))
    append_event(session, search_id, "search", "QUEUED", cause)
    session.add_all(_trial_rows(search_id, spec))
    session.flush()
    for planned in planned_trials(spec):
        append_event(
            session, search_id, "trial", "WAITING", cause, number=planned.number, attempt=0
        )
    return get_search(session, search_id, now=now)


def cancel(
    session: Session, search_id: str, *, now: datetime, request_id: str | None = None
) -> SearchView:
    """Begin nothing more and ask what runs to stop; asking twice is harmless."""
    search = lock_search(session, search_id)
    cause = Cause("client", now, "user_cancel", "the client asked for it", request_id)
    match search.state:
        case "QUEUED" | "RUNNING":
            move_search(session, search, "STOPPING", cause, request_id=request_id)
            cancel_waiting(session, trials_of(session, search_id), cause)
            advance(session, search, cause)
        case "SUCCEEDED" | "FAILED":
            raise WrongState(f"the search has already ended: it is {search.state}")
        case _:
            pass
    return get_search(session, search_id, now=now)


def _search_row(
    search_id: str, spec: SearchSpec, resolved: ResolvedSearch, now: datetime
) -> SearchRow:
    return SearchRow(
        id=search_id,
        name=spec.name,
        model=spec.model.kind,
        dataset=spec.dataset,
        spec=spec.model_dump(mode="json"),
        state="QUEUED",
        reason="",
        sentence="",
        quantity=resolved.quantity,
        budget=resolved.budget,
        dense_cost=resolved.dense_cost,
        smallest_cost=resolved.smallest_cost,
        eligible=list(resolved.eligible),
        network=resolved.network.model_dump(mode="json"),
        created_at=now,
    )


def _trial_rows(search_id: str, spec: SearchSpec) -> list[TrialRow]:
    return [
        TrialRow(
            id=f"{search_id}-{planned.number}",
            search_id=search_id,
            number=planned.number,
            kind=planned.kind,
            family=planned.family,
            repeat=planned.repeat,
            budget_index=planned.budget_index,
            name=planned.name,
            state="WAITING",
            reason="",
            sentence="",
            attempt=0,
            losses=0,
        )
        for planned in planned_trials(spec)
    ]
