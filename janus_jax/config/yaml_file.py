"""YAML files as plain data that remembers where each value was written.

Read by YAML 1.2's core rules, which differ from PyYAML's own where configurations get hurt: `5e-6` is a number, `no`,
`on` and `2024-05-01` are text, `010` is ten. Refused with file and line: duplicate keys, aliases and tags.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from janus_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Node:
    """A value and its origin, `file:line` or `override 'a.b=c'`; a mapping holds dict[str, Node], a list list[Node]."""

    value: Any
    origin: str

    def plain(self) -> Any:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, list) else self.value

    def origin_of(self, path: Iterable[str | int]) -> str:
        """Where `path` was written, or else the innermost part of it that was."""
        node = self
        for part in path:
            if isinstance(node.value, dict) and part in node.value:
                node = node.value[part]
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
            else:
                break
        return node.origin


def read_tree(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> tuple[Node, list[str]]:
    """Reads a file with its chain of `base:` files beneath it and `a.b=value` overrides on top of it.

    A mapping in a file is merged into that of its base key by key; anything else, and every override, replaces.

    Returns:
        The merged root mapping without `base`, and problems that do not stop the reading (one line each).

    Raises:
        ConfigError: a file cannot be read, is not YAML, or the chain of bases runs in a circle.
    """
    problems: list[str] = []
    root = _read_chain(os.fspath(path), [], problems)
    for text in overrides:
        root = _override(root, text, problems)
    return root, problems


def dump(values: dict[str, Any]) -> str:
    """YAML text that `read_tree` reads back to the same values, and so do YAML 1.1 readers."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _read_chain(path: str, below: list[str], problems: list[str]) -> Node:
    if os.path.realpath(path) in below:
        raise ConfigError(f"{path}: base: the files refer to each other in a circle; a chain of bases must end")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    parsed = _parse(text, path, problems)
    top = Node({}, path) if parsed.value is None else Node(parsed.value, path)
    if not isinstance(top.value, dict):
        raise ConfigError(
            f"{parsed.origin}: {shorten(parsed.plain())}: a configuration is a mapping of `key: value` lines"
        )
    base = top.value.pop("base", None)
    if base is None or base.value is None:
        return top
    if not isinstance(base.value, str):
        problems.append(
            f"{base.origin}: base = {shorten(base.plain())}: allowed: the path of a file, relative to this one"
        )
        return top
    base_path = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(base.value)))
    if not os.path.isfile(base_path):
        raise ConfigError(f"{base.origin}: base = {base.value!r}: there is no file {base_path}")
    return merge(_read_chain(base_path, [*below, os.path.realpath(path)], problems), top)


def merge(under: Node, over: Node) -> Node:
    """Mappings are merged key by key; anything else is replaced."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(under.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, over.origin)


def _override(root: Node, text: str, problems: list[str]) -> Node:
    origin = f"override '{text}'"
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(re.fullmatch(r"\w+", part) for part in path):
        problems.append(f"{origin}: allowed: key=value with a dotted key, like batch.rows=4")
        return root
    if path == ["base"]:
        problems.append(f"{origin}: base can be given in a file only")
        return root
    try:
        parsed = _parse(value, origin, problems, lines=False, path=tuple(path))
    except ConfigError as error:
        problems.append(str(error))
        return root
    return _set(root, path, Node(parsed.value, origin), origin, problems)


def _set(node: Node, path: list[str], value: Node, origin: str, problems: list[str]) -> Node:
    if not path:
        return value
    if node.value is not None and not isinstance(node.value, dict):
        problems.append(f"{origin}: {shorten(node.plain())} is a value, not a section that could hold {path[0]!r}")
        return node
    children = node.value or {}
    child = children.get(path[0], Node(None, origin))
    return Node({**children, path[0]: _set(child, path[1:], value, origin, problems)}, node.origin)


def _parse(text: str, name: str, problems: list[str], *, lines: bool = True, path: tuple[str, ...] = ()) -> Node:
    try:
        document = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if lines and mark else ""
        raise ConfigError(f"{name}{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: not a configuration: nested too deeply") from error
    if document is None:
        return Node(None, f"{name}:1" if lines else name)
    return _convert(document, path, lambda node: f"{name}:{node.start_mark.line + 1}" if lines else name, problems)


def _convert(node: yaml.Node, path: tuple[str, ...], origin: Any, problems: list[str]) -> Node:
    here, key_here = origin(node), ".".join(path)
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        children: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = origin(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(f"{place}: {key_here}: a key must be a plain word")
                continue
            key = key_node.value
            inner = (*path, key)
            if key in children:
                problems.append(f"{place}: {'.'.join(inner)}: duplicate key, given before at {children[key].origin}")
            else:
                children[key] = Node(_convert(value_node, inner, origin, problems).value, place)
        return Node(children, here)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        items = [_convert(item, (*path, str(index)), origin, problems) for index, item in enumerate(node.value)]
        return Node(items, here)
    try:
        return Node(_SCALARS[node.tag](node.value), here)
    except (KeyError, ValueError):
        problems.append(
            f"{here}: {key_here} = {shorten(node.value)}: tags and values of this kind are not read ({node.tag})"
        )
        return Node(None, here)


def shorten(value: Any) -> str:
    """`value` as YAML would write it on one line, at most 60 characters."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    text = text.removesuffix("\n").removesuffix("\n...").strip()
    return text if len(text) <= 60 else text[:57] + "..."


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _integer(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_SCALARS: dict[str, Any] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": _integer,
    "tag:yaml.org,2002:float": _number,
    "tag:yaml.org,2002:str": str,
}

_CORE_RULES = [  # YAML 1.2.2, section 10.3.2; the first that matches wins
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
]


def _core_resolvers() -> Iterator[tuple[str, re.Pattern[str], list[str]]]:
    for tag, pattern, first in _CORE_RULES:
        yield f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})\Z"), first


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's protocol)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not read; share values with base:", problem_mark=mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """PyYAML's own rules and the core rules together decide what must be quoted, so that both kinds of reader agree."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quotes with escapes where PyYAML would fold: U+0085 that it folds is not what it reads back."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _tag, _pattern, _first in _core_resolvers():
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
