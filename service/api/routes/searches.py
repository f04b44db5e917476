"""Searches: asked for, listed, watched, changed, stopped, deleted."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, final

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.models import Example
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    FiniteFloat,
    ValidationError,
)
from sqlalchemy import event
from sqlalchemy.orm import Session

from search.profile_report import ProfileReport
from search.report import Report
from search.spec import Dataset, SearchSpec
from service import jobs, tracing
from service.api.auditing import Auditing
from service.api.conditional import (
    IfMatch,
    IfNoneMatch,
    check_match,
    repr_digest,
    tag_of,
    tagged,
)
from service.api.dependencies import (
    Installation,
    KeyTaken,
    Reading,
    RequestId,
    Writing,
    json_only,
)
from service.api.documented import (
    BODY_REFUSED,
    CHANGED,
    CONFLICT,
    NOT_FOUND,
    NOT_MODIFIED,
)
from service.api.door import Asking
from service.api.paging import Cursor, Limit, next_link, once_each
from service.api.schemas import (
    FrontAnswer,
    ImportancesAnswer,
    SearchAnswer,
    SearchChanges,
    SearchList,
)
from service.api.statuses import Status, lasting
from service.api.together import Together
from service.artifacts import make_store
from service.db.session import clock
from service.errors import SearchNotFound
from service.lifecycle import SearchState
from service.queue import send_after_commit
from service.settings import Settings

# How often it is worth asking after a live search.
RETRY_SECONDS = 2

router = APIRouter(prefix="/searches", tags=["searches"])

EXAMPLES: dict[str, Example] = {
    "a small search": {
        "value": {
            "model": {"kind": "mlp", "hidden": [64, 64]},
            "dataset": "digits",
            "budget": {"quantity": "macs", "ratio": 0.3},
            "compute": {"trials": 2, "epochs": 4},
        }
    }
}


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("in UTC it is outside of the calendar") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


@final
@dataclass(frozen=True, slots=True)
class Decision:
    """Who decides something about a search, on which request, and at what they have looked.

    Nothing is asked of the database before the route asks for the cause: on SQLite all others wait
    from then on.
    """

    session: Session
    asking: jobs.Actor
    request_id: str
    if_match: str = ""

    def cause(self, search_id: str) -> jobs.Cause:
        """Begin, unless the search is not what the client has seen, if it says what that was."""
        now = clock(self.session)
        if self.if_match:
            view = jobs.get_search(self.session, search_id, now=now, locked=True)
            check_match(tag_of(lasting(SearchAnswer.model_validate(view))), self.if_match)
        return jobs.Cause(self.asking.label, now, request_id=self.request_id)


async def _deciding(session: Writing, asking: Asking, request_id: RequestId) -> Decision:
    return Decision(session, asking, request_id)


async def _deciding_as_seen(
    session: Writing, asking: Asking, request_id: RequestId, if_match: IfMatch = ""
) -> Decision:
    return Decision(session, asking, request_id, if_match)


Deciding = Annotated[Decision, Depends(_deciding, scope="function")]
DecidingAsSeen = Annotated[Decision, Depends(_deciding_as_seen, scope="function")]


@final
class SearchQuery(BaseModel):
    """Which searches to list; an unknown filter is refused, not passed over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: SearchState | None = None
    tag: str | None = None
    model: Literal["mlp", "vit", "mixer", "gpt", "matrix"] | None = None
    dataset: Dataset | None = None
    name: str | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    loss_from: FiniteFloat | None = None
    loss_to: FiniteFloat | None = None
    sort: jobs.SearchSort = "-created_at"
    cursor: Cursor = None
    limit: Limit = 50


@router.post(
    "",
    status_code=202,
    response_model=SearchAnswer,
    dependencies=[Depends(json_only)],
    responses=CONFLICT | BODY_REFUSED,
)
def submit(
    spec: Annotated[SearchSpec, Body(openapi_examples=EXAMPLES)],
    key: KeyTaken,
    session: Writing,
    installation: Installation,
    request_id: RequestId,
    asking: Asking,
) -> Response:
    """Take a search on; with an Idempotency-Key, once."""
    asked = Asked(session, installation, request_id, key, asking)
    return asked.once(spec.model_dump_json(), lambda: spec)


@router.post(
    "/{search_id}/clone",
    status_code=202,
    response_model=SearchAnswer,
    dependencies=[Depends(json_only)],
    responses=NOT_FOUND | CONFLICT | BODY_REFUSED,
)
def clone(
    search_id: str,
    changes: Annotated[dict[str, Any], Body()],
    key: KeyTaken,
    session: Writing,
    installation: Installation,
    request_id: RequestId,
    asking: Asking,
) -> Response:
    """Take a search on again with some fields changed (a merge patch), warm-started from the first.

    With an Idempotency-Key, once.
    """
    asked = Asked(session, installation, request_id, key, asking)
    named = json.dumps([search_id, changes], sort_keys=True)
    return asked.once(named, lambda: _spec(jobs.cloned(session, search_id, changes)))


@router.get("", dependencies=[Depends(once_each)])
def list_searches(
    request: Request, session: Reading, wanted: Annotated[SearchQuery, Query()]
) -> SearchList:
    """List searches, newest first unless told; `loss_from` and `loss_to` are of the best so far."""
    choice = wanted.model_dump(exclude={"sort", "cursor", "limit"})
    page = jobs.list_searches(
        session,
        jobs.SearchFilter(**choice),
        now=clock(session),
        cursor=wanted.cursor,
        limit=wanted.limit,
        sort=wanted.sort,
    )
    items = tuple(SearchAnswer.model_validate(view) for view in page.searches)
    return SearchList(items=items, next=next_link(request, page.cursor))


@router.get("/{search_id}", response_model=SearchAnswer, responses=NOT_MODIFIED | NOT_FOUND)
async def get_search(search_id: str, request: Request, if_none_match: IfNoneMatch = "") -> Response:
    """Tell how a search is doing; 304 if nothing has changed but the estimate."""
    statuses: Together[str, Status] = request.app.state.statuses
    status = await statuses.ask(search_id)
    if status is None:
        raise SearchNotFound(search_id)
    return tagged(
        status.body,
        if_none_match,
        lasting=status.lasting,
        headers={"Retry-After": str(RETRY_SECONDS)} if status.live else {},
    )


@router.patch(
    "/{search_id}",
    response_model=SearchAnswer,
    dependencies=[Depends(json_only)],
    responses=NOT_FOUND | CONFLICT | BODY_REFUSED | CHANGED,
)
def amend(
    search_id: str,
    changes: Annotated[SearchChanges, Body()],
    session: Writing,
    installation: Installation,
    deciding: DecidingAsSeen,
) -> Response:
    """Change the name, the tags or the priority of a search, or give it more compute."""
    asked = deciding.cause(search_id)
    wanted = changes.model_dump(mode="json", exclude_unset=True)
    view = jobs.amend(session, search_id, wanted, asked)
    if "compute" in wanted:
        jobs.check_going_on(session, search_id, installation.quota, now=asked.at)
    _hint(session, search_id, installation, asked.at)
    answer = SearchAnswer.model_validate(view)
    return tagged(answer.model_dump_json(), "", lasting=lasting(answer))


@router.delete(
    "/{search_id}",
    status_code=204,
    responses=NOT_FOUND | CONFLICT | CHANGED,
)
def delete(
    search_id: str,
    session: Writing,
    installation: Installation,
    deciding: DecidingAsSeen,
    audit: Auditing,
) -> None:
    """Delete a search that has ended: its rows, and then its files."""
    jobs.keep_account(session, search_id, now=deciding.cause(search_id).at)
    jobs.delete_search(session, search_id)
    audit.note("search.deleted", search_id)
    files = make_store(installation)
    event.listen(session, "after_commit", lambda _: files.remove_search(search_id), once=True)


@router.post("/{search_id}/cancel", status_code=202, responses=NOT_FOUND | CONFLICT)
def cancel(search_id: str, session: Writing, deciding: Deciding) -> SearchAnswer:
    """Stop a search, keeping what is done; repeating it is harmless."""
    return SearchAnswer.model_validate(jobs.cancel(session, search_id, deciding.cause(search_id)))


@router.post("/{search_id}/kill", status_code=202, responses=NOT_FOUND | CONFLICT)
def kill(search_id: str, session: Writing, deciding: Deciding) -> SearchAnswer:
    """End the processes of a search, even if it is being cancelled; repeating it is harmless."""
    return SearchAnswer.model_validate(jobs.kill(session, search_id, deciding.cause(search_id)))


@router.post("/{search_id}/pause", status_code=202, responses=NOT_FOUND | CONFLICT)
def pause(search_id: str, session: Writing, deciding: Deciding) -> SearchAnswer:
    """Let a search rest: what runs leaves a checkpoint; repeating it is harmless."""
    return SearchAnswer.model_validate(jobs.pause(session, search_id, deciding.cause(search_id)))


@router.post("/{search_id}/resume", status_code=202, responses=NOT_FOUND | CONFLICT)
def resume(
    search_id: str, session: Writing, installation: Installation, deciding: Deciding
) -> SearchAnswer:
    """Let a paused search go on from its checkpoints; repeating it is harmless."""
    asked = deciding.cause(search_id)
    view = jobs.resume(session, search_id, asked)
    jobs.check_going_on(session, search_id, installation.quota, now=asked.at)
    _hint(session, search_id, installation, asked.at)
    return SearchAnswer.model_validate(view)


@router.get(
    "/{search_id}/spec",
    response_model=SearchSpec,
    responses=NOT_MODIFIED | NOT_FOUND,
)
def spec(search_id: str, session: Reading, if_none_match: IfNoneMatch = "") -> Response:
    """Give what was asked for, whole: the body that asks for the same again."""
    view = jobs.get_search(session, search_id, now=clock(session))
    return tagged(view.spec.model_dump_json(), if_none_match)


@router.get("/{search_id}/front", responses=NOT_FOUND)
def front(
    search_id: str,
    session: Reading,
    metric_floor: Annotated[float | None, Query(allow_inf_nan=False)] = None,
) -> FrontAnswer:
    """List the networks between loss, cost and latency, the best trade-offs marked.

    With `metric_floor`, name the cheapest whose metric reaches it: the validation accuracy, or
    minus the validation loss where there are no classes.
    """
    found = jobs.front(session, search_id, metric_floor=metric_floor)
    return FrontAnswer.model_validate(found)


@router.get("/{search_id}/report", response_model=Report, responses=NOT_MODIFIED | NOT_FOUND)
def report(search_id: str, session: Reading, if_none_match: IfNoneMatch = "") -> Response:
    """Give what was measured on the exported files."""
    body = jobs.report(session, search_id).model_dump_json()
    digest = repr_digest(hashlib.sha256(body.encode()).hexdigest())
    return tagged(body, if_none_match, headers={"Repr-Digest": digest})


@router.get(
    "/{search_id}/profile", response_model=ProfileReport, responses=NOT_MODIFIED | NOT_FOUND
)
def profile(search_id: str, session: Reading, if_none_match: IfNoneMatch = "") -> Response:
    """Give each layer's menu, sensitivity and allocation; once there, they do not change."""
    return tagged(jobs.profile(session, search_id).model_dump_json(), if_none_match)


@router.get("/{search_id}/importances", responses=NOT_FOUND)
def importances(search_id: str, session: Reading) -> ImportancesAnswer:
    """Say what each hyper-parameter mattered; nothing where too few candidates were completed."""
    return ImportancesAnswer(items=jobs.report(session, search_id).importances)


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a search, and how it is answered: once, where it has an Idempotency-Key."""

    session: Session
    installation: Settings
    request_id: str
    key: str | None
    asking: jobs.Actor

    def once(self, named: str, spec: Callable[[], SearchSpec]) -> Response:
        """Take the search on, or give the answer that was given to the same before."""
        session, key, now = self.session, self._key(), clock(self.session)
        sha256 = hashlib.sha256(named.encode()).hexdigest()
        stored = jobs.recall(session, key, body_sha256=sha256, now=now) if key else None
        if stored is not None:
            return _accepted(json.dumps(stored.answer), str(stored.answer["id"]), stored.status)
        quota = self.installation.quota
        jobs.check_submission(session, self.asking.key_id, quota, now=now)
        asked = spec()
        data = self.installation.data_folder if self.installation.sees_data else None
        resolved = jobs.resolve_spec(session, asked, data=data)
        view = jobs.submit(
            session,
            asked,
            resolved=resolved,
            now=now,
            request_id=self.request_id,
            asking=self.asking,
            trace=tracing.here(),
        )
        answer = SearchAnswer.model_validate(view)
        if key:
            jobs.remember(session, key, status=202, answer=answer.model_dump(mode="json"))
        _hint(session, view.id, self.installation, now)
        return _accepted(answer.model_dump_json(), view.id, 202)

    def _key(self) -> str | None:
        """The Idempotency-Key in the name of who asks: others may have come to the same one."""
        if self.key is None or self.asking.key_id is None:
            return self.key
        return f"{self.asking.key_id} {hashlib.sha256(self.key.encode()).hexdigest()}"


def _hint(session: Session, search_id: str, installation: Settings, now: datetime) -> None:
    """Send out whatever of a search may start now, once this is committed."""
    again_after = timedelta(seconds=installation.hint_seconds)
    due = jobs.hints_due(session, now=now, again_after=again_after, search_id=search_id)
    send_after_commit(session, due)


def _spec(body: dict[str, Any]) -> SearchSpec:
    """Read a spec that no client has sent as it is; what is wrong is told as if one had."""
    try:
        return SearchSpec.model_validate(body)
    except ValidationError as error:
        wrong = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(wrong, body=body) from error


def _accepted(body: str, search_id: str, status: int) -> Response:
    headers = {"Location": f"/v1/searches/{search_id}", "Retry-After": str(RETRY_SECONDS)}
    return Response(body, status, headers=headers, media_type="application/json")
