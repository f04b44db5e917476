"""What is wrong with a request, as fields and sentences that name the remedy."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from models.structures.base import nearest

Location = Sequence[int | str]
# Of pydantic's list of what it expected: each is in quotes.
NAMES = re.compile(r"'([^']*)'")


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: the field's path, empty for the whole body, and a sentence."""

    field: str
    sentence: str


def faults(
    errors: Sequence[Mapping[str, Any]], *, body: object, schema: Mapping[str, Any]
) -> tuple[Fault, ...]:
    """Translate pydantic's errors; `schema` is the JSON schema of the body, for what else exists.

    An error about a container is left out where one of its members is named already.
    """
    locations = [tuple(error["loc"]) for error in errors]
    return tuple(
        _fault(error, body, schema)
        for error, location in zip(errors, locations, strict=True)
        if not any(other[: len(location)] == location != other for other in locations)
    )


def _fault(error: Mapping[str, Any], body: object, schema: Mapping[str, Any]) -> Fault:
    where, *rest = error["loc"]
    if where != "body":
        field = path(rest)
        return Fault(field, _sentence(error, field, {}))
    if error["type"] == "json_invalid":
        return Fault("", f"the body is not JSON: {error['ctx']['error']} at character {rest[0]}")
    if error["type"] in {"model_type", "model_attributes_type"} and not rest:
        return Fault("", "the body must be a JSON object")
    known, keys = _walk(rest, body, schema, missing=error["type"] == "missing")
    if error["type"] == "value_error":
        sentence = str(error["ctx"]["error"])
        # Our own validators of several fields open with the one to change.
        first = sentence.partition(" ")[0]
        return Fault(
            path([*keys, first] if first in known.get("properties", ()) else keys), sentence
        )
    if error["type"].startswith("union_tag"):
        keys.append(error["ctx"]["discriminator"].strip("'"))
    return Fault(path(keys), _sentence(error, path(keys), known))


def path(keys: Location) -> str:
    """`space.groups[1]`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def _walk(
    location: Location, body: object, schema: Mapping[str, Any], *, missing: bool
) -> tuple[Mapping[str, Any], list[int | str]]:
    """Follow pydantic's location through body and schema, dropping the tags of unions.

    Returns the schema where the error is (of the parent, for a key that does not belong there).
    """
    definitions = schema.get("$defs", {})
    known = _resolved(schema, body, definitions)
    keys: list[int | str] = []
    for index, key in enumerate(location):
        last = index == len(location) - 1
        within = isinstance(body, list) and isinstance(key, int) and key < len(body)
        inside = within or (isinstance(body, dict) and key in body)
        if not inside and not (missing and last):
            continue  # the tag of a union, which is no part of the body
        keys.append(key)
        body = body[key] if inside else None  # type: ignore[index]
        inner = known.get("items") if isinstance(key, int) else known.get("properties", {}).get(key)
        if inner is not None:
            known = _resolved(inner, body, definitions)
    return known, keys


def _resolved(
    schema: Mapping[str, Any], body: object, definitions: Mapping[str, Any]
) -> Mapping[str, Any]:
    if "$ref" in schema:
        return _resolved(definitions[schema["$ref"].rpartition("/")[2]], body, definitions)
    tags = schema.get("discriminator", {}).get("mapping", {})
    tag = (
        body.get(schema["discriminator"]["propertyName"]) if tags and isinstance(body, dict) else ""
    )
    if isinstance(tag, str) and tag in tags:
        return _resolved({"$ref": tags[tag]}, body, definitions)
    return schema


def _sentence(error: Mapping[str, Any], field: str, known: Mapping[str, Any]) -> str:
    ctx, value = error.get("ctx", {}), shown(error.get("input"))
    match error["type"]:
        case "missing":
            sentence = "is missing"
        case "extra_forbidden":
            sentence = _unknown(field, known)
        case "union_tag_invalid":
            sentence = (
                f"is {ctx['tag']!r}; {_choices(ctx['tag'], NAMES.findall(ctx['expected_tags']))}"
            )
        case "union_tag_not_found":
            names = list(known.get("discriminator", {}).get("mapping", {}))
            sentence = f"is missing; {_choices(None, names)}"
        case "literal_error" | "enum":
            sentence = f"is {value}; {_choices(error['input'], NAMES.findall(ctx['expected']))}"
        case "int_type" | "int_from_float":
            sentence = f"is {value}; it must be a whole number{_unquoted(error['input'])}"
        case "float_type":
            sentence = f"is {value}; it must be a number{_unquoted(error['input'])}"
        case "model_type" | "model_attributes_type" | "dict_type":
            sentence = f"is {value}; it must be an object{_example(error['input'], known)}"
        case "value_error":
            sentence = f"is {value}; {ctx['error']}"
        case _:
            rule = re.sub(r"^\w+ should", "it must", error["msg"])
            sentence = f"is {value}; {rule[0].lower()}{rule[1:]}"
    return f"{field or 'the body'} {sentence}"


def _choices(value: object, names: Sequence[str]) -> str:
    """What there is, and what was probably meant; in quotes where a name has a comma."""
    near = nearest(value, names) if isinstance(value, str) else None
    meant = f"did you mean {near!r}? C" if near else "c"
    quoted = [repr(name) for name in names] if any("," in name for name in names) else names
    return f"{meant}hoose one of {', '.join(quoted)}"


def _unquoted(value: object) -> str:
    """The number that a text holds."""
    try:
        return f", without quotes: {float(value):g}" if isinstance(value, str) else ""
    except ValueError:
        return ""


def _example(value: object, known: Mapping[str, Any]) -> str:
    """How an object begins that is one of several kinds."""
    names = list(known.get("discriminator", {}).get("mapping", {}))
    if not names:
        return ""
    near = (nearest(value, names) if isinstance(value, str) else None) or names[0]
    return f', such as {{"{known["discriminator"]["propertyName"]}": "{near}", ...}}'


def _unknown(field: str, known: Mapping[str, Any]) -> str:
    names = sorted(known.get("properties", ()))
    if not names:
        return "is not known here"
    near = nearest(field.rpartition(".")[2], names)
    remedy = f"did you mean {near}?" if near else f"the fields here are {', '.join(names)}"
    return f"is not a field; {remedy}"


def shown(value: object) -> str:
    """A value short enough for a sentence."""
    match value:
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
        case bytes():
            return "not JSON"
        case None:
            return "null"
        case _:
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}..."
