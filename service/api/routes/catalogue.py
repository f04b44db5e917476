"""What can be asked for, with the schema of each one's options."""

from typing import Any, final, get_args

from fastapi import APIRouter
from pydantic import BaseModel

from models.spec import ImageTask, Model, TextTask
from models.structures import Structure
from search.fetch import is_missing
from search.spec import DATASET_TASKS, Dataset, SearchSpec
from service.api.dependencies import Installation
from service.api.schemas import Answer

router = APIRouter(tags=["catalogue"])


@final
class Choice(Answer):
    """One thing to choose: `kind` is how a spec names it."""

    kind: str
    description: str
    json_schema: dict[str, Any]


@final
class DatasetChoice(Answer):
    """One data set: what goes in, what comes out, and whether `make data` is to fetch it first."""

    name: Dataset
    task: ImageTask | TextTask
    missing: bool


@router.get("/models")
def models() -> list[Choice]:
    """List the networks a search can start from."""
    return _choices(Model)


@router.get("/structures")
def structures() -> list[Choice]:
    """List the structures that a layer can have, whether searches find them or not."""
    return _choices(Structure)


@router.get("/datasets")
def datasets(installation: Installation) -> list[DatasetChoice]:
    """List the data a network can learn."""
    return [
        DatasetChoice(name=name, task=task, missing=is_missing(name, installation.data_folder))
        for name, task in DATASET_TASKS.items()
    ]


@router.get("/schema")
def schema() -> dict[str, Any]:
    """Give the schema of a whole search."""
    return SearchSpec.model_json_schema()


def _choices(union: Any) -> list[Choice]:
    """Read the members of an annotated union."""
    members: tuple[type[BaseModel], ...] = get_args(get_args(union)[0])
    return [
        Choice(
            kind=member.model_fields["kind"].default,
            description=member.__doc__ or "",
            json_schema=member.model_json_schema(),
        )
        for member in members
    ]
