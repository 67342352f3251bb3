"""YAML files as plain data that remembers where each value was written.

Scalars follow the core rules of YAML 1.2. PyYAML's own rules differ where it hurts: here `5e-6` is a number, `no`, `on`
and `2024-05-01` are text, and `010` is ten. Duplicate keys, aliases and tags are refused with file and line. (The YAML
1.2 mode of ruamel.yaml reads `2024-05-01` as a date and `1_000` as a number, so it would need these rules too.)
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import yaml

from janus_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Node:
    """A value and its origin, `file:line` or `override 'a.b=c'`. The children of a mapping or list are Nodes too."""

    value: Any
    origin: str

    def plain(self) -> Any:
        """The value without origins."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, list) else self.value

    def origin_of(self, path: Iterable[str | int]) -> str:
        """Where the value at `path` was written, or else the innermost section on the way to it."""
        node = self
        for part in path:
            if isinstance(node.value, dict) and part in node.value:
                node = node.value[part]
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
            else:
                break
        return node.origin


def read_tree(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    *,
    takes_text: Callable[[Sequence[str | int]], bool] = lambda path: False,
) -> tuple[Node, list[str]]:
    """Reads a file merged over its chain of `base:` files, and applies `a.b=value` overrides.

    A mapping is merged over the same mapping of the base, key by key. Any other value, and every override, replaces. A
    number in an override's key is that of a list's item, from 0.

    Args:
        takes_text: whether the key at a path takes any text. An override of such a key is not YAML: ` #`, `: ` and
            brackets are parts of the text.
    Returns:
        The merged root mapping without `base`, and one line for each problem that does not stop the reading.

    Raises:
        ConfigError: a file cannot be read or is not YAML, or the chain of bases is a circle.
    """
    problems: list[str] = []
    root = _read_chain(os.fspath(path), [], problems)
    for text in overrides:
        root = _override(root, text, problems, takes_text)
    return root, problems


def read_list(path: str | os.PathLike[str]) -> list[tuple[Any, str]]:
    """The items of a file that is one list, each with its `file:line`.

    Raises:
        ConfigError: the file cannot be read, is not YAML or is no list.
    """
    problems: list[str] = []
    parsed = _parse(_text(os.fspath(path)), os.fspath(path), problems)
    if parsed.value is None:
        return []
    if problems or not isinstance(parsed.value, list):
        raise ConfigError(problems[0] if problems else f"{parsed.origin}: allowed: a list of `- ` items")
    return [(item.plain(), item.origin) for item in parsed.value]


def dump(values: dict[str, Any]) -> str:
    """YAML text that `read_tree` and YAML 1.1 readers both read back to the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _read_chain(path: str, opened: list[str], problems: list[str]) -> Node:
    if os.path.realpath(path) in opened:
        raise ConfigError(f"{path}: base: the files name each other in a circle; a chain of bases must end")
    parsed = _parse(_text(path), path, problems)
    top = Node({}, path) if parsed.value is None else Node(parsed.value, path)
    if not isinstance(top.value, dict):
        raise ConfigError(f"{parsed.origin}: {shorten(parsed.plain())}: allowed: `key: value` lines")
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
        raise ConfigError(f"{base.origin}: base = {base.value!r}: file not found: {base_path}")
    return merge(_read_chain(base_path, [*opened, os.path.realpath(path)], problems), top)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def merge(under: Node, over: Node) -> Node:
    """`over` merged over `under`: mappings key by key; any other value replaces."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(under.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, over.origin)


def _override(root: Node, text: str, problems: list[str], takes_text: Callable[[Sequence[str | int]], bool]) -> Node:
    origin = f"override '{text}'" if text.isprintable() else f"override {text!r}"
    key, equals, value = text.partition("=")
    path: list[str | int] = [*key.strip().split(".")]
    if not equals or not all(re.fullmatch(r"\w+", str(part)) for part in path):
        item = "; an item of a list has a number, from 0: data.mixture.0.weight=2" if equals else ""
        problems.append(f"{origin}: allowed: key=value with a dotted key, like batch.rows=4{item}")
        return root
    node = root
    for at, part in enumerate(path):
        if isinstance(node.value, list) and re.fullmatch(r"0|[1-9][0-9]{0,8}", str(part)):
            path[at] = part = int(part)
        inner: Any = dict(enumerate(node.value)) if isinstance(node.value, list) else node.value
        node = inner.get(part, Node(None, origin)) if isinstance(inner, dict) else Node(None, origin)
    if path == ["base"]:
        problems.append(f"{origin}: base is allowed in files only")
        return root
    try:
        if takes_text(path) and not re.match(_YAML_TEXT, value):
            parsed = Node(_encodable(value, origin), origin)
        else:
            parsed = _parse(value, origin, problems, lines=False, path=tuple(map(str, path)))
            if str(parsed.plain()).count("#") < value.count("#"):
                raise ConfigError(f"{origin}: YAML reads ` #` as a comment and drops the rest; put text in quotes")
    except ConfigError as error:
        problems.append(str(error))
        return root
    return _set(root, path, 0, Node(parsed.value, origin), problems)


_YAML_TEXT = r"""\s*(['"!]|(~|null|Null|NULL|true|True|TRUE|false|False|FALSE|)\s*\Z)"""
"""What is YAML in an override of a text too: quotes, a tag, and the words that are no text."""


def _encodable(value: str, origin: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{origin}: is not UTF-8 text") from error
    return value


def _set(node: Node, path: Sequence[str | int], depth: int, value: Node, problems: list[str]) -> Node:
    """`node`, which is at the first `depth` parts of `path`, with `value` at the rest of it."""
    if depth == len(path):
        return value
    part, key = path[depth], ".".join(map(str, path[:depth]))
    if isinstance(node.value, list):
        if isinstance(part, int) and part < len(node.value):
            item = _set(node.value[part], path, depth + 1, value, problems)
            return Node([*node.value[:part], item, *node.value[part + 1 :]], node.origin)
        problems.append(f"{value.origin}: {key} has no item {part}; allowed: {_items(key, len(node.value))}")
        return node
    if node.value is not None and not isinstance(node.value, dict):
        problems.append(f"{value.origin}: {key} = {shorten(node.plain())} is not a section with a key {part!r}")
        return node
    children = node.value or {}
    child = children.get(part, Node(None, value.origin))
    inner = _set(child, path, depth + 1, value, problems)
    return node if inner is child else Node({**children, part: inner}, node.origin)


def _items(key: str, number: int) -> str:
    """The items of a list that an override may name."""
    whole = f"the whole list, {key}=[...]"
    return f"{key}.0{f' to {key}.{number - 1}' if number > 1 else ''}, or {whole}" if number else whole


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


def _convert(node: yaml.Node, path: tuple[str, ...], origin: Callable[[yaml.Node], str], problems: list[str]) -> Node:
    here, key = origin(node), ".".join(path)
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        children: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place, name = origin(key_node), key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(f"{place}: {f'{key}: ' if key else ''}a key must be a plain word")
            elif name in children:
                problems.append(
                    f"{place}: {'.'.join((*path, name))}: duplicate key, given before at {children[name].origin}"
                )
            else:
                children[name] = Node(_convert(value_node, (*path, name), origin, problems).value, place)
        return Node(children, here)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        items = [_convert(item, (*path, str(index)), origin, problems) for index, item in enumerate(node.value)]
        return Node(items, here)
    try:
        return Node(_SCALARS[node.tag](node.value), here)
    except (KeyError, ValueError):
        value = f" = {shorten(node.value)}" if isinstance(node, yaml.ScalarNode) else ""
        problems.append(f"{here}: {key}{value}: the tag {node.tag} is not supported; write the value without a tag")
        return Node(None, here)


def shorten(value: Any) -> str:
    """`value` as YAML on one line, cut to 60 characters."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    text = text.removesuffix("\n").removesuffix("\n...").strip()
    return text if len(text) <= 60 else text[:57] + "..."


_SCALARS: dict[str, Any] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    "tag:yaml.org,2002:float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
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


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's protocol)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported; share values through base:", problem_mark=mark
            )
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever PyYAML's own rules or the core rules would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Escapes characters that do not print: PyYAML would fold U+0085 and read back something else."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
for _tag, _pattern, _first in _CORE_RULES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})\Z"), _first)
