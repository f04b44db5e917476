"""The base of every spec: a frozen value that refuses unknown fields and travels as JSON."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen value that refuses unknown fields and travels as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
