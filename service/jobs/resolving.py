"""What arithmetic, the uploads and the fetched data know about a spec."""

from pathlib import Path

from sqlalchemy.orm import Session

from models.spec import Matrix, MatrixTask
from search.fetch import DataMissing, is_missing
from search.resolved import ResolvedSearch, resolve
from search.spec import SearchSpec, SpecError
from service.db.tables import ArtifactRow
from service.errors import SpecRefused


def resolve_spec(session: Session, spec: SearchSpec, *, data: Path | None = None) -> ResolvedSearch:
    """Everything about a spec that arithmetic and the uploads know; or SpecRefused.

    With `data`, the folder of what has been fetched, what is not there is refused as well.
    """
    matrix = None
    if isinstance(spec.model, Matrix):
        row = session.get(ArtifactRow, spec.model.artifact)
        matrix = None if row is None else MatrixTask(rows=row.rows, columns=row.columns)
    try:
        resolved = resolve(spec, matrix=matrix)
    except SpecError as error:
        raise SpecRefused(error.sentence, field=error.field) from error
    if data is not None and spec.dataset is not None and is_missing(spec.dataset, data):
        raise SpecRefused(str(DataMissing(spec.dataset, data)), field="dataset")
    return resolved
