"""One line for each mistake in a configuration: where it was written, the key, its value, and what is allowed there."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails, ValidationError

from janus_jax.config.yaml_file import Node, shorten

Schema = Mapping[str, Any]
"""JSON schema of a model, or a part of it. A part may word what it allows itself, under the key `allowed`."""
Location = Sequence[str | int]


def problems(error: ValidationError, root: Node, schema: Schema) -> list[str]:
    """One line for each mistake that pydantic reports about `root`, worded from the JSON schema of the model."""
    return [_problem(item, root, schema) for item in error.errors(include_url=False) if item["type"] != "conflict"]


def join(path: str, lines: Sequence[str]) -> str:
    """A single line unchanged; several lines as a list under their count."""
    unique = list(dict.fromkeys(lines))
    return unique[0] if len(unique) == 1 else "\n  ".join([f"{path}: {len(unique)} errors", *unique])


def allowed(node: Schema, schema: Schema) -> str:
    """The values that a part of the schema allows, in words."""
    node = resolve(node, schema)
    if "allowed" in node:
        return node["allowed"]
    if "anyOf" in node:
        parts = [allowed(choice, schema) for choice in node["anyOf"]]
        join_word = "; or " if any("," in part for part in parts) else " | " if " | " in parts[0] else " or "
        return join_word.join(parts)
    if "oneOf" in node:
        return f"a section with name: {' | '.join(forms(node))}"
    if "enum" in node or "const" in node:
        return " | ".join(str(value) for value in node.get("enum", [node.get("const")]))
    if node.get("type") == "object" and "$ref" in (inner := node.get("additionalProperties") or {}):
        return f"a section of names of your own, each {allowed(inner, schema)}"
    if node.get("type") == "object":
        return f"a section with the keys {', '.join(_keys(node, schema))}"
    if node.get("type") == "array":
        return (
            f"a list{' with at least one item' if node.get('minItems') else ''}, each {allowed(node['items'], schema)}"
        )
    if node.get("type") == "string":
        return "non-empty text" if node.get("minLength") else "text"
    bounds = [
        f"{sign} {node[name]}"
        for sign, name in ((">=", "minimum"), (">", "exclusiveMinimum"), ("<=", "maximum"), ("<", "exclusiveMaximum"))
        if name in node
    ]
    nouns = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    return f"{nouns[node['type']]} {' and '.join(bounds)}".strip()


def forms(node: Schema) -> Mapping[str, str]:
    """The forms that `name` chooses between, each with a reference to its schema; {} if the section has one form."""
    return node.get("discriminator", {}).get("mapping", {})


def choices(node: Schema, schema: Schema) -> list[Schema]:
    """The alternatives of a part, such as a section and null."""
    return [resolve(choice, schema) for choice in node.get("anyOf", [node])]


def takes_text(path: Location, schema: Schema) -> bool:
    """Whether the key at a path takes any text, such as a directory, and not one of some words."""
    texts = [choice for choice in choices(_find(schema, path), schema) if choice.get("type") == "string"]
    return bool(texts) and not any("enum" in text or "const" in text for text in texts)


def resolve(node: Schema, schema: Schema) -> Schema:
    """The part itself, where `node` is a reference to it."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _problem(item: ErrorDetails, root: Node, schema: Schema) -> str:
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
        return f"{origin}: {key}: missing; allowed: {allowed(_find(schema, location), schema)}"
    if kind == "section":  # keys of one section that contradict each other
        return f"{origin}: {key}: {item['msg']}"
    reason = f" {item['msg']};" if kind in ("mesh_axes", "remat") else ""
    rule = allowed(_find(schema, location), schema)
    if kind == "string_type" and isinstance(item["input"], bool | int | float):
        rule += ' (write it in quotes: "...")'
    value = item["input"]
    if kind == "union_tag_invalid" and isinstance(value, dict):
        value = value.get("name")
    return f"{origin}: {key} = {shorten(value)}:{reason} allowed: {rule}"


def _written(location: Location, schema: Schema) -> tuple[str | int, ...]:
    """The path as a user writes it. For a section with forms, pydantic puts the name of the form after its key."""
    section = _find(schema, location[:1])
    if "oneOf" in section and len(location) > 1 and location[1] in forms(section):
        return (location[0], *location[2:])
    return tuple(location)


def _find(schema: Schema, location: Location) -> Schema:
    """The part of the schema at a location, references and `| null` resolved; {} if the schema has none."""
    node = resolve(schema, schema)
    for part in location:
        if part in forms(node):
            node = {"$ref": forms(node)[str(part)]}
        elif "oneOf" in node:  # the location is that of `name`
            return {"enum": list(forms(node))}
        elif "allowed" in node:  # its words cover what is inside it
            return node
        elif isinstance(part, int):  # an index in a list
            node = next((choice["items"] for choice in choices(node, schema) if "items" in choice), {})
        else:
            section = next((choice for choice in choices(node, schema) if "properties" in choice), {})
            node = section.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = resolve(node if isinstance(node, Mapping) else {}, schema)
    return node


def _keys(node: Schema, schema: Schema) -> list[str]:
    for choice in choices(node, schema):
        if "properties" in choice:
            return list(choice["properties"])
    return []


def _all_keys(schema: Schema) -> Iterator[str]:
    for name, node in schema["properties"].items():
        section = resolve(node, schema)
        for form in [resolve({"$ref": reference}, schema) for reference in forms(section).values()] or [section]:
            yield from (f"{name}.{key}" for key in _keys(form, schema))


def _suggest(path: Location, location: Location, schema: Schema) -> str:
    """The most similar key of the same section, else this key in another section, else all keys of the section."""
    key = str(path[-1])
    keys = _keys(_find(schema, location[:-1]), schema) + (["base"] if len(path) == 1 else [])
    near = difflib.get_close_matches(key, keys, n=1)
    if near:
        return f"did you mean {'.'.join([*map(str, path[:-1]), near[0]])!r}?"
    elsewhere = [other for other in dict.fromkeys(_all_keys(schema)) if other.endswith(f".{key}")]
    if elsewhere and ".".join(map(str, path)) not in elsewhere:  # else it belongs to another form of this section
        return f"did you mean {elsewhere[0]!r}?"
    return f"allowed: {', '.join(keys)}" if keys else "allowed: no keys here"
