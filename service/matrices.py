"""A matrix that is sent as JSON, as the safetensors file that it is kept as."""

from pydantic import TypeAdapter, ValidationError

from service.errors import ArtifactRefused, TooLarge

# Whoever has more numbers than this sends them as they are in memory.
MOST_JSON_BYTES = 4 * 1024 * 1024
NAME = "matrix"
ROWS = TypeAdapter(list[list[float]])


def from_rows(body: bytes) -> bytes:
    """Read a list of rows, all of them as long as each other, in double precision."""
    import numpy as np  # noqa: PLC0415  (12 MB that a server without matrices never needs)
    from safetensors.numpy import save  # noqa: PLC0415

    if len(body) > MOST_JSON_BYTES:
        sentence = f"a matrix in JSON may have {MOST_JSON_BYTES:,} bytes; send a safetensors file"
        raise TooLarge(sentence)
    try:
        rows = ROWS.validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"[{part}]" for part in first["loc"])
        sentence = f"the matrix{where} is not what a list of rows of numbers has there"
        raise ArtifactRefused(f"{sentence}: {first['msg']}", field=f"file{where}") from error
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        sentence = f"the rows have {min(lengths)} to {max(lengths)} numbers, but must be equal"
        raise ArtifactRefused(sentence, field="file")
    return save({NAME: np.array(rows, dtype=np.float64).reshape(len(rows), -1 if rows else 0)})
