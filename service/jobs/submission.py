"""What a client can hand in: an artifact, and a search."""

from datetime import datetime
from uuid import uuid4

from sqlalchemy.orm import Session

from models.spec import Matrix
from search.plan import planned_trials
from search.resolved import ResolvedSearch
from search.spec import SearchSpec
from service.db.queries import insert_if_new
from service.db.tables import ArtifactRow, SearchRow, TagRow
from service.errors import ArtifactNotFound
from service.jobs.garbage import hold_upload
from service.jobs.keys import ANYBODY, Actor
from service.jobs.planning import trial_row_of
from service.jobs.reading import get_search
from service.jobs.transitions import Cause, append_event, append_waiting
from service.jobs.views import ArtifactView, SearchView
from service.jobs.warm import warm_start


def add_artifact(session: Session, artifact: ArtifactView, *, key_id: str | None = None) -> bool:
    """Remember an upload, and whether it is new: the same bytes are the same artifact.

    Whoever sends them at the same time waits until this transaction ends.
    """
    row = {
        name: getattr(artifact, name)
        for name in (
            *("id", "kind", "sha256", "bytes", "tensor"),
            *("dtype", "rows", "columns", "created_at"),
        )
    }
    return insert_if_new(session, ArtifactRow, row | {"key_id": key_id}, key=["id"])


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
    asking: Actor = ANYBODY,
) -> SearchView:
    """Insert a search with every trial it will have; they wait for `hints_due` to send them out."""
    if isinstance(spec.model, Matrix):
        hold_upload(session, spec.model.artifact)
    search_id = f"srch_{uuid4().hex}"
    cause = Cause(asking.label, now, request_id=request_id)
    row = _search_row(search_id, spec, resolved, now)
    row.request_id, row.trace, row.key_id = request_id, trace, asking.key_id
    row.priority = spec.priority
    if spec.warm_start is not None:
        earlier, row.warm_start = warm_start(session, spec, resolved, spec.warm_start)
        row.earlier = [one.model_dump(mode="json") for one in earlier]
    session.add(row)
    session.flush()
    session.add_all(TagRow(search_id=search_id, tag=tag) for tag in dict.fromkeys(spec.tags))
    append_event(session, search_id, "search", "QUEUED", cause)
    plan = planned_trials(spec)
    session.add_all(trial_row_of(search_id, planned) for planned in plan)
    session.flush()
    append_waiting(session, search_id, [planned.number for planned in plan], cause)
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
        bests=[None for _ in resolved.budgets],
        created_at=now,
    )
