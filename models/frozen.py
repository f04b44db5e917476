"""The base of every spec: a frozen value that refuses unknown fields and travels as JSON."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

NUMBERS = ("int", "float", "bool")


def _make_numbers_strict(schema: Any) -> None:
    """Mark every number in a schema; other specs in it are references, which were marked before."""
    if isinstance(schema, dict):
        if schema.get("type") in NUMBERS:
            schema["strict"] = True
        for inner in schema.values():
            _make_numbers_strict(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _make_numbers_strict(inner)


class Spec(BaseModel):
    """A frozen value that refuses unknown fields and travels as JSON.

    Its numbers are numbers: the 3 of a rank is neither `"3"` nor 3.0, and 1 is not true.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Have numbers strict, and nothing else: rows of JSON bring their tuples as lists."""
        schema = handler(source)
        _make_numbers_strict(handler.resolve_ref_schema(schema))
        return schema
