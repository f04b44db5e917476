"""Every spec that is taken survives its journey as JSON, and every refusal names the field."""

import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search.spec import SearchSpec
from service.api.sentences import Fault, faults

FULL = bool(os.environ.get("FULL_PROOF"))
SCHEMA = SearchSpec.model_json_schema()
many = settings(
    max_examples=20_000 if FULL else 200,
    deadline=None,
    database=None,
    derandomize=not FULL,
    suppress_health_check=list(HealthCheck),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.sampled_from([0.25, 0.5, 1.0, 1.5]),
    st.text(max_size=8),
    st.sampled_from(["digits", "macs", "latency", "low rank", "learned_low_rank", "tpe", "grid"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=4,
)


def like(schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """What a part of the schema describes or, now and then, anything else."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return st.one_of(*[_described(schema, depth)] * 9, anything)


def _described(schema: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    several = schema.get("anyOf") or schema.get("oneOf") or []
    if depth > 6:
        found = scalars
    elif several:
        found = st.one_of(*[like(one, depth + 1) for one in several])
    elif "enum" in schema or "const" in schema:
        found = st.sampled_from(schema.get("enum") or [schema["const"]])
    elif schema.get("type") == "array":
        items = like(schema.get("items", {}), depth + 1)
        found = st.lists(items, max_size=min(4, schema.get("maxItems", 4)))
    elif schema.get("type") == "object":
        parts = {n: like(one, depth + 1) for n, one in schema.get("properties", {}).items()}
        needed = set(schema.get("required", ())) | {"kind"} & set(parts)
        found = st.fixed_dictionaries(
            {name: part for name, part in parts.items() if name in needed},
            optional={name: part for name, part in parts.items() if name not in needed},
        )
    else:
        found = _plain(schema)
    return found


def _plain(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    high = max(low + 1, min(schema.get("maximum", 300), 300))
    kinds: dict[str | None, st.SearchStrategy[Any]] = {
        "integer": st.integers(int(low), int(high)),
        "number": st.floats(low, high),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return kinds.get(schema.get("type"), st.text(max_size=10))


def refusals(body: Any) -> tuple[Fault, ...]:
    """What a client would be told of a body; nothing if it is taken."""
    try:
        SearchSpec.model_validate(body)
    except ValidationError as error:
        wrong = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        return faults(wrong, body=body, schema=SCHEMA)
    return ()


@many
@given(like(SCHEMA))
def test_a_spec_survives_as_json_or_is_refused_by_name(body: Any) -> None:
    named = refusals(body)
    if named:
        assert all(fault.sentence for fault in named)
        for fault in named:
            top = fault.field.partition(".")[0].partition("[")[0]
            # What concerns the whole is said of the whole; any other fault is of a part that is
            # there, or that should be.
            known = set(SCHEMA["properties"]) | (set(body) if isinstance(body, dict) else set())
            assert not top or top in known or fault.field in known
        return
    spec = SearchSpec.model_validate(body)
    text = spec.model_dump_json()
    again = SearchSpec.model_validate_json(text)
    assert again == spec
    assert again.model_dump_json() == text
    assert SearchSpec.model_validate(spec.model_dump(mode="json")) == spec


VALID: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [32, 32]},
    "dataset": "digits",
    "budget": {"ratio": 0.3},
}


@many
@given(st.sampled_from(sorted(SCHEMA["properties"])), anything)
def test_one_wrong_field_in_a_good_spec_is_the_one_that_is_named(name: str, value: Any) -> None:
    body = VALID | {name: value}
    tops = {fault.field.partition(".")[0].partition("[")[0] for fault in refusals(body)}
    # A rule about several fields names the one to change, which may be another.
    assert not tops or name in tops or tops <= SCHEMA["properties"].keys()
