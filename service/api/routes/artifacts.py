"""Files: uploads that a spec can name, and what a search has made."""

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, final

import anyio.from_thread
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from service import jobs
from service.api.conditional import IfNoneMatch, is_known, repr_digest
from service.api.dependencies import Installation, Reading, Rows, content_type
from service.api.documented import BODY_REFUSED, NOT_FOUND, NOT_MODIFIED, Responses, problems
from service.api.door import Asking
from service.api.schemas import ArtifactAnswer, FileAnswer, FileList
from service.artifacts import StoredFile, make_store
from service.db.session import Database, clock
from service.errors import ArtifactNotFound, NotYetThere, QuotaExceeded, Unavailable
from service.matrices import from_rows
from service.settings import Settings

EXPORTED = re.compile(r"(?P<search>srch_[0-9a-f]{32})-(?P<number>\d{1,6})-(?P<name>[\w.]+)")

OCTETS: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
ROWS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
UPLOADS = {"application/octet-stream": OCTETS, "application/json": {"schema": ROWS}}
PARTS = {"application/octet-stream": OCTETS, "multipart/byteranges": OCTETS}
FILES: Responses = {
    **NOT_MODIFIED,
    **NOT_FOUND,
    **problems(416),
    206: {"description": "The ranges that were asked for", "content": PARTS},
}

router = APIRouter(tags=["artifacts"])


@final
class Octets(Response):
    """A file."""

    media_type = "application/octet-stream"


@router.put(
    "/artifacts",
    status_code=201,
    response_model=ArtifactAnswer,
    responses=BODY_REFUSED,
    openapi_extra={"requestBody": {"required": True, "content": UPLOADS}},
)
async def upload(
    request: Request, rows: Rows, installation: Installation, asking: Asking
) -> Response:
    """Keep one matrix, sent as the bytes of a safetensors file, or as JSON: a list of its rows."""
    if content_type(request) == "application/json":
        chunks = iter([from_rows(await request.body())])
    else:
        chunks = _chunks(aiter(request.stream()))
    answer = await run_in_threadpool(_keep, chunks, rows, installation, asking.key_id)
    headers = {"Location": f"/v1/artifacts/{answer.id}"}
    return Response(answer.model_dump_json(), 201, headers, "application/json")


@router.get("/artifacts/{artifact_id}", response_class=Octets, responses=FILES)
def download(
    artifact_id: str,
    session: Reading,
    installation: Installation,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """Send a file, or a range of it; its ETag is the SHA-256 of the whole."""
    store = make_store(installation)
    if exported := EXPORTED.fullmatch(artifact_id):
        search_id, number, name = exported["search"], int(exported["number"]), exported["name"]
        trial = jobs.get_trial(session, search_id, number, now=clock(session))
        session.rollback()  # a store may take longer than a transaction may be silent
        found = {
            file.name.removeprefix("export/"): file
            for file in store.exports(search_id, number, trial.attempt)
        }
        if name not in found:
            raise ArtifactNotFound(artifact_id)
        path, filename, sha256 = store.fetch(found[name]), name, found[name].sha256
    else:
        uploaded = jobs.get_artifact(session, artifact_id)
        session.rollback()
        path, sha256 = store.upload(uploaded.id), uploaded.sha256
        filename = f"{artifact_id}.safetensors"
    headers = {"ETag": f'"{sha256}"', "Repr-Digest": repr_digest(sha256)}
    if is_known(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    return FileResponse(
        path, headers=headers, media_type="application/octet-stream", filename=filename
    )


@router.get("/searches/{search_id}/artifacts", responses=NOT_FOUND)
def files(search_id: str, session: Reading, installation: Installation) -> FileList:
    """List the files that the trials of a search have exported, and its report."""
    store = make_store(installation)
    trials = jobs.list_trials(session, search_id, now=clock(session))
    session.rollback()  # as above
    found = [
        _file(search_id, trial.number, file)
        for trial in trials
        if trial.state == "COMPLETE"
        for file in store.exports(search_id, trial.number, trial.attempt)
    ]
    try:
        text = jobs.report(session, search_id).model_dump_json().encode()
    except NotYetThere:
        return FileList(items=tuple(found))
    link = f"/v1/searches/{search_id}/report"
    report = FileAnswer(
        id=search_id,
        name="report.json",
        trial=None,
        bytes=len(text),
        sha256=hashlib.sha256(text).hexdigest(),
        link=link,
    )
    return FileList(items=(report, *found))


def _chunks(stream: AsyncIterator[bytes]) -> Iterator[bytes]:
    """Read a body in a thread of its own, as it comes."""

    async def following() -> bytes | None:
        return await anext(stream, None)

    while (chunk := anyio.from_thread.run(following)) is not None:
        yield chunk


def _keep(
    chunks: Iterator[bytes], rows: Database, settings: Settings, key_id: str | None
) -> ArtifactAnswer:
    store = make_store(settings)
    with rows.read() as session:
        now = clock(session)
        room = jobs.upload_room(session, key_id, settings.quota)
    fitting = chunks if room is None else _fitting(chunks, room)
    artifact = store.put(fitting, max_bytes=settings.max_upload_bytes, now=now)
    with rows.write() as session:
        try:
            jobs.check_upload(session, key_id, settings.quota, artifact)
        except QuotaExceeded:
            # Its row is never committed, but nobody else's of the same bytes is meanwhile.
            if jobs.add_artifact(session, artifact, key_id=key_id):
                store.remove_upload(artifact.id)
            raise
        jobs.add_artifact(session, artifact, key_id=key_id)
        if not store.has_upload(artifact.id):  # for whom there was no room sent the same bytes
            raise Unavailable("the upload was lost to another of the same bytes; send it again")
        return ArtifactAnswer.model_validate(jobs.get_artifact(session, artifact.id))


def _fitting(chunks: Iterator[bytes], room: int) -> Iterator[bytes]:
    """The same, refused as soon as it is more than there is room for."""
    for chunk in chunks:
        room -= len(chunk)
        if room < 0:
            raise jobs.no_room(room + len(chunk))
        yield chunk


def _file(search_id: str, number: int, file: StoredFile) -> FileAnswer:
    name = file.name.removeprefix("export/")
    artifact_id = f"{search_id}-{number}-{name}"
    return FileAnswer(
        id=artifact_id,
        name=name,
        trial=number,
        bytes=file.bytes,
        sha256=file.sha256,
        link=f"/v1/artifacts/{artifact_id}",
    )
