"""Words for the mistakes in a configuration: where it was written, the value, and what is allowed there."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails, ValidationError

from janus_jax.config.yaml_file import Node, shorten


def problems(error: ValidationError, root: Node, schema: Mapping[str, Any]) -> list[str]:
    """One line for each mistake that pydantic found in `root`, worded from the JSON schema of the model."""
    return [_problem(item, root, schema) for item in error.errors(include_url=False) if item["type"] != "conflict"]


def join(path: str, lines: Sequence[str]) -> str:
    """A single mistake as it is; several as a list under a count."""
    unique = list(dict.fromkeys(lines))
    return unique[0] if len(unique) == 1 else "\n  ".join([f"{path}: {len(unique)} errors", *unique])


def _problem(item: ErrorDetails, root: Node, schema: Mapping[str, Any]) -> str:
    kind, location = item["type"], item["loc"]
    if location and location[-1] == "[key]":  # a key of a mapping with named keys
        kind, location = "extra_forbidden", location[:-1]
    if kind.startswith("union_tag"):
        location = (*location, "name")
    path = _written(location, schema)
    key, origin = ".".join(map(str, path)), root.origin_of(path)
    if kind == "extra_forbidden":
        return f"{origin}: {key}: unknown key; {_suggest(path, location, schema)}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{origin}: {key}: missing; allowed: {_allowed(_find(schema, location), schema)}"
    if kind == "section":  # keys of one section that do not fit each other
        return f"{origin}: {key}: {item['msg']}"
    reason = f" {item['msg']};" if kind == "mesh_axes" else ""
    rule = _allowed(_find(schema, location), schema)
    if kind == "string_type" and isinstance(item["input"], bool | int | float):
        rule += ' (write it in quotes: "...")'
    value = item["input"]
    if kind == "union_tag_invalid" and isinstance(value, dict):
        value = value.get("name")
    return f"{origin}: {key} = {shorten(value)}:{reason} allowed: {rule}"


def _written(location: Sequence[str | int], schema: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The path as a user writes it: without the tag that pydantic puts after the key of a tagged union."""
    tagged = len(location) > 1 and "oneOf" in _find(schema, location[:1])
    return (
        (location[0], *location[2:])
        if tagged and location[1] in _tags(_find(schema, location[:1]))
        else tuple(location)
    )


def _tags(union: Mapping[str, Any]) -> Mapping[str, Any]:
    return union.get("discriminator", {}).get("mapping", {})


def _find(schema: Mapping[str, Any], location: Sequence[str | int]) -> Mapping[str, Any]:
    """The schema of a place, references and `| null` resolved on the way; {} if there is none."""
    node = _resolve(schema, schema)
    for part in location:
        if part in _tags(node):
            node = {"$ref": _tags(node)[str(part)]}
        elif "oneOf" in node:  # the tag itself is wanted
            return {"enum": list(_tags(node))}
        elif "allowed" in node:  # its words cover what is inside it
            return node
        else:
            choices = _choices(node, schema)
            if isinstance(part, int):  # the place in a list
                node = next((choice["items"] for choice in choices if "items" in choice), {})
            else:
                section = next((choice for choice in choices if "properties" in choice), {})
                node = section.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = _resolve(node if isinstance(node, Mapping) else {}, schema)
    return node


def _resolve(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _choices(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [_resolve(choice, schema) for choice in node.get("anyOf", [node])]


def _allowed(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a place takes, in words."""
    node = _resolve(node, schema)
    if "allowed" in node:
        return node["allowed"]
    if "anyOf" in node:
        return " or ".join(_allowed(choice, schema) for choice in node["anyOf"])
    if "oneOf" in node:
        return f"a section with name: {' | '.join(_tags(node))}"
    if "enum" in node or "const" in node:
        return " | ".join(str(value) for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "object":
        return f"a section with the keys {', '.join(_keys(node, schema))}"
    if node.get("type") == "array":
        return (
            f"a list{', not empty,' if node.get('minItems') else ''} of which each is {_allowed(node['items'], schema)}"
        )
    if node.get("type") == "string":
        return "text, not empty" if node.get("minLength") else "text"
    bounds = [
        f"{sign} {node[name]}"
        for sign, name in ((">=", "minimum"), (">", "exclusiveMinimum"), ("<=", "maximum"), ("<", "exclusiveMaximum"))
        if name in node
    ]
    nouns = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    return f"{nouns[node['type']]} {' and '.join(bounds)}".strip()


def _keys(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    for choice in _choices(node, schema):
        if "properties" in choice:
            return list(choice["properties"])
        if "propertyNames" in choice:
            return list(_resolve(choice["propertyNames"], schema).get("enum", []))
    return []


def _all_keys(schema: Mapping[str, Any]) -> Iterator[str]:
    for section, node in schema["properties"].items():
        found = _resolve(node, schema)
        for choice in [schema["$defs"][ref.rsplit("/", 1)[1]] for ref in _tags(found).values()] or [found]:
            yield from (f"{section}.{key}" for key in _keys(choice, schema))


def _suggest(path: Sequence[str | int], location: Sequence[str | int], schema: Mapping[str, Any]) -> str:
    """The nearest key of the same section, or else that key in another section, or else all keys of the section."""
    key = str(path[-1])
    keys = _keys(_find(schema, location[:-1]), schema) + (["base"] if len(path) == 1 else [])
    near = difflib.get_close_matches(key, keys, n=1)
    if near:
        return f"did you mean {'.'.join([*map(str, path[:-1]), near[0]])!r}?"
    elsewhere = [other for other in dict.fromkeys(_all_keys(schema)) if other.endswith(f".{key}")]
    if elsewhere and ".".join(map(str, path)) not in elsewhere:  # else it belongs to another choice of `name`
        return f"did you mean {elsewhere[0]!r}?"
    return f"allowed: {', '.join(keys)}" if keys else "allowed: nothing, there are no keys here yet"
