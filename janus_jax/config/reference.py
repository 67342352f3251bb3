"""The page of every key, made from the schema of `RunConfig`:

python -m janus_jax.config.reference > docs/configuration.md
"""

import dataclasses
import textwrap
from collections.abc import Iterator

from janus_jax.config.mistakes import Schema, allowed, choices, forms, resolve
from janus_jax.config.run import RunConfig
from janus_jax.config.yaml_file import shorten

INTRODUCTION = """\
# Configuration

A run is described by one YAML file. `janus config show FILE` prints it with every default written out.

    base: base_7b.yaml                  # read first; this file is merged over it
    run: {dir: runs/mine}
    init: {from: models/Mistral-7B-v0.2}
    data: {dir: data/mine}
    batch: {rows: 32, row_length: 8192, max_sequence_length: 8192}
    objective: {name: sft}
    schedule: {learning_rate: 5e-6, epochs: 4}

**Bases.** `base:` names another file, relative to this one; it may have a base too. A section is merged over the same
section of the base, key by key. Any other value replaces the one in the base.

**Overrides.** `janus train FILE batch.rows=16 'mesh={fsdp: 4, tensor: 2}'` changes keys on top of the file. The value
is YAML, and it replaces what the file has, even a whole section. A number names an item of a list that the file or an
earlier override has, from 0: `data.mixture.0.weight=2`. The last override of a key wins. A key that takes any text,
such as `run.dir`, takes everything after the `=`: `'run.dir=runs/try #2'` and `run.dir=123` name directories. Only
quotes around the whole text, a tag (`!name`), `null`, `true` and `false` are still YAML there.

**null.** `key: null` unsets what a base has set. Each key that allows null says what it means.

**Paths.** Relative paths start at the working directory. Only `base:` is relative to its file.

**YAML.** Values follow the core rules of YAML 1.2: `5e-6` is a number, and `no`, `on` and `2024-05-01` are text.
Duplicate keys, aliases (`*name`) and tags (`!name`) are refused.

**Mistakes.** All mistakes of a file, its bases and the overrides come in one report, before the run starts. Each
takes one line: the file and line (or the override), the key, its value, and what is allowed.

You must give `run.dir`, `batch`, `objective` and `schedule`, one of `init.from` and `model`, and one of `data.dir` and
`data.mixture`. All other keys have defaults.
"""


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a configuration, described in words."""

    name: str
    allowed: str
    default: str
    meaning: str


def page() -> str:
    """docs/configuration.md."""
    return "\n".join([INTRODUCTION, *tables(RunConfig.model_json_schema())])


def tables(schema: Schema) -> Iterator[str]:
    """A heading and a table of keys for each key of a configuration."""
    required = schema.get("required", [])
    keys = schema["properties"].items()
    return (_section(name, node | ({"required": True} if name in required else {}), schema) for name, node in keys)


def keys() -> Iterator[Key]:
    """All keys, those of each form of `objective` too."""
    schema = RunConfig.model_json_schema()
    for name, node in schema["properties"].items():
        yield from _keys(name, node, schema)
        for form in forms(node).values():
            yield from _form_keys(name, form, schema)


def _section(name: str, node: Schema, schema: Schema) -> str:
    parts = [f"## {name}\n"]
    inner = next((choice for choice in choices(resolve(node, schema), schema) if "properties" in choice), node)
    if "properties" in inner:
        parts.append(_prose(_meaning(inner)))
    parts.append(_table(_keys(name, node, schema)))
    for form, reference in forms(node).items():
        described = resolve({"$ref": reference}, schema)
        parts.append(f"### {name}: {{name: {form}}}\n\n{_prose(_meaning(described))}")
        parts.append(_table(_form_keys(name, reference, schema)) or "It has no other keys.\n")
    return "\n".join(part for part in parts if part)


def _keys(name: str, node: Schema, schema: Schema) -> Iterator[Key]:
    """The key itself; of a section the keys in it; of a list of sections both."""
    node = resolve(node, schema)
    for choice in choices(node, schema):
        if "properties" in choice:
            for key, child in choice["properties"].items():
                required = {"required": True} if key in choice.get("required", []) else {}
                yield from _keys(f"{name}.{key}", child | required, schema)
            return
    if forms(node):
        yield Key(f"{name}.name", " | ".join(forms(node)), "required", "Chooses one of the tables of keys below.")
        return
    if "$ref" in (named := node.get("additionalProperties") or {}):
        yield from _keys(f"{name}.NAME", named, schema)
        return
    default = "required" if node.get("required") else f"`{shorten(node.get('default'))}`"
    yield Key(name, allowed(node, schema), default, _meaning(node))
    for choice in choices(node, schema):
        if "$ref" in choice.get("items", {}):
            yield from _keys(f"{name}.N", choice["items"], schema)


def _form_keys(name: str, reference: str, schema: Schema) -> Iterator[Key]:
    """The keys of one form of a section; `name`, which chooses the form, has a row before."""
    return (key for key in _keys(name, {"$ref": reference}, schema) if key.name != f"{name}.name")


def _meaning(node: Schema) -> str:
    return " ".join(node.get("description", "").split())


def _prose(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n" if text else ""


def _table(rows: Iterator[Key]) -> str:
    lines = [f"| `{key.name}` | {_cell(key.allowed)} | {_cell(key.default)} | {_cell(key.meaning)} |" for key in rows]
    return "\n".join(["| key | allowed | default | meaning |", "|---|---|---|---|", *lines, ""]) if lines else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
