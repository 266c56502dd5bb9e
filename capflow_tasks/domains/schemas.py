"""JSON schemas of answers: what may stand in a domain file, and whether an answer follows one."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from capflow_tasks.records import JsonObject, Stage

#: What may stand in a schema: what validates, and what describes.
_KEYWORDS = sorted(
    {*Draft202012Validator.VALIDATORS, "$schema", "$id", "$defs", "$comment", "title", "description"}
    | {"default", "examples", "minContains", "maxContains", "then", "else"}
)
#: Keywords whose value is a schema, a list of schemas, or schemas by name.
_ONE, _SEVERAL, _NAMED = ("items",), ("anyOf", "oneOf", "prefixItems"), ("properties", "$defs")


def closed(schema: Mapping[str, Any]) -> JsonObject:
    """Return the schema with objects of all their properties and no others, where it says nothing else.

    Then all answers have the same keys; some servers take no other schemas.
    """
    found = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            found[key] = {
                name: closed(each) if isinstance(each, Mapping) else each for name, each in value.items()
            }
        elif key in _SEVERAL and isinstance(value, list):
            found[key] = [closed(each) if isinstance(each, Mapping) else each for each in value]
        elif key in _ONE and isinstance(value, Mapping):
            found[key] = closed(value)
    if isinstance(names := schema.get("properties"), Mapping):
        found = {**found, "required": schema.get("required", list(names))}
        found.setdefault("additionalProperties", False)
    return found


def answer_faults(stage: Stage, keys: JsonObject) -> Iterator[str]:
    """Find what does not fit in an agent's keys `answer` and `schema`; each fault begins with its key."""
    expected = {Stage.ROUTE: ("letter",), Stage.SCORE: ("scores", "choice")}.get(stage, ("text", "json"))
    if (answer := keys.get("answer", "text")) not in expected:
        yield f"answer: stage {stage} needs {' or '.join(expected)}; use that"
    if (answer == "json") != ("schema" in keys):
        yield "schema: an agent with `answer: json` needs one, no other may have any; fix that or the answer"
    yield from _schema_faults(keys["schema"]) if "schema" in keys else ()


def _schema_faults(schema: Mapping[str, Any]) -> Iterator[str]:
    """Find what is wrong with a schema for a whole answer; each fault begins with its place."""
    meta = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    if faults := sorted(meta.iter_errors(schema), key=lambda fault: list(map(str, fault.absolute_path))):
        for fault in faults:
            place = ".".join(map(str, ("schema", *fault.absolute_path)))
            yield f"{place}: {fault.message}; see https://json-schema.org/understanding-json-schema"
        return
    yield from _unknown_keywords(schema, "schema")
    if schema.get("type") != "object" or not schema.get("properties"):
        yield "schema: an answer is an object with named parts; add type: object, and properties"
    for place, name in _references(schema, "schema"):
        if name.removeprefix("#/$defs/") not in schema.get("$defs", {}):
            yield f"{place}: {name!r} is not in this schema; name a part of its $defs, as in '#/$defs/part'"


def _unknown_keywords(schema: Mapping[str, Any], place: str) -> Iterator[str]:
    """Find misspelt limits, which a validator passes over."""
    for key, value in schema.items():
        if key not in _KEYWORDS:
            close = get_close_matches(key, _KEYWORDS, n=1)
            meant = f"did you mean {close[0]}?" if close else "remove it"
            yield f"{place}.{key}: is no keyword of JSON Schema; {meant}"
        inner = {key: value}
        if key in _NAMED:
            inner = {f"{key}.{name}": each for name, each in value.items()}
        elif key in _SEVERAL:
            inner = {f"{key}.{number}": each for number, each in enumerate(value)}
        elif key not in _ONE:
            continue
        for name, each in inner.items():
            yield from _unknown_keywords(each, f"{place}.{name}") if isinstance(each, Mapping) else ()


def _references(part: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield each $ref with its place."""
    pairs = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list) else ()
    for key, value in pairs:
        if key == "$ref" and isinstance(value, str):
            yield f"{place}.$ref", value
        else:
            yield from _references(value, f"{place}.{key}")


def broken_by(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Return where the value does not follow the schema; None where it does."""
    fault = best_match(Draft202012Validator(schema).iter_errors(value))
    return None if fault is None else f"{fault.json_path}: {fault.message}"


def texts_in(value: Any) -> Iterator[str]:
    """Yield the texts of a JSON value, in order, without the names of its parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(part)
